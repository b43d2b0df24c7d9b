# lsoftmax_json(VARIABLE TEXT): sets VARIABLE to TEXT as a string of JSON, with its quotes. What is not printable ASCII, as
# the end of a line, becomes a space.
function(lsoftmax_json variable text)
  string(REGEX REPLACE "[^ -~]+" " " text "${text}")
  string(REGEX REPLACE "([\"\\\\])" "\\\\\\1" text "${text}")
  set(${variable} "\"${text}\"" PARENT_SCOPE)
endfunction()
