// The arrays of Arguments by their names, for whom they reach at run time: TensorFlow's ops and XLA's calls.
//
// Inputs and outputs of the ops bear these names, so the list of arguments.h alone says what each has to be and where it goes.
#ifndef LSOFTMAX_CORE_ARRAYS_H_
#define LSOFTMAX_CORE_ARRAYS_H_

#include <stdint.h>
#include <string.h>

#include <string>
#include <string_view>
#include <type_traits>

#include "core/arguments.h"
#include "core/grad_unit.h"

namespace lsoftmax {

enum class Element { kReal, kDouble, kFloat, kInt32, kInt64, kLabel };  // kReal: of type T; kLabel: int32 or int64

struct Array {
  const char* name;
  const char* shape;
  Element element;

  bool may_be_none() const { return strstr(shape, "or none") != nullptr; }
};

struct Real {};  // stands in for T

template <typename Pointer>
constexpr Element element_of() {
  using Value = std::remove_const_t<std::remove_pointer_t<Pointer>>;
  if (std::is_same_v<Value, double>) return Element::kDouble;
  if (std::is_same_v<Value, float>) return Element::kFloat;
  if (std::is_same_v<Value, int32_t>) return Element::kInt32;
  if (std::is_same_v<Value, int64_t>) return Element::kInt64;
  return std::is_same_v<Value, Labels> ? Element::kLabel : Element::kReal;
}

template <typename T>
constexpr Array kArraysOf[] = {
#define LSOFTMAX_ROW(TYPE, NAME, SHAPE) {#NAME, SHAPE, element_of<TYPE>()},
    LSOFTMAX_FOR_EACH_ARRAY(LSOFTMAX_ROW)
#undef LSOFTMAX_ROW
};
inline constexpr auto& kArrays = kArraysOf<Real>;

// The number of an array in kArrays; -1 for other names.
constexpr int number_of(std::string_view name) {
  int number = -1, i = 0;
  for (const Array& array : kArrays) {
    if (name == array.name) number = i;
    ++i;
  }
  return number;
}

inline void point(Labels* labels, void* data) { labels->data = data; }
template <typename Value>
void point(Value** array, void* data) {
  *array = static_cast<Value*>(data);
}

// Points the array kArrays[number] of `args` to `data`.
template <typename T>
void point(Arguments<T>* args, int number, void* data) {
  void (*const set[])(Arguments<T>*, void*) = {
#define LSOFTMAX_SET(TYPE, NAME, SHAPE) [](Arguments<T>* args, void* data) { point(&args->NAME, data); },
      LSOFTMAX_FOR_EACH_ARRAY(LSOFTMAX_SET)
#undef LSOFTMAX_SET
  };
  set[number](args, data);
}

// The same of an input: one that is none stays null.
template <typename T>
void take(Arguments<T>* args, int number, void* data, int64_t elements, bool wide_labels) {
  const bool is_none = kArrays[number].may_be_none() && elements == 0;
  const bool is_one = number == number_of("grad_unit") && !kHasGradUnit<T>;
  if (is_none || is_one) return;
  point(args, number, data);
  if (number == number_of("labels")) args->labels.wide = wide_labels;
}

// Calls visit(letter or digit) for each dimension of a shape.
template <typename Visit>
void for_each_dimension(const char* shape, const Visit& visit) {
  for (; *shape != ']'; ++shape) {
    if (strchr("[, ", *shape) == nullptr) visit(*shape);
  }
}

constexpr int kMaxRank = 2;  // of an array

// What the letters of the shapes stand for; -1 where that is not known yet.
struct Sizes {
  int64_t rows = -1, depth = -1, classes = -1, block = -1;

  int64_t& of(char letter) {
    return letter == 'N' ? rows : letter == 'D' ? depth : letter == 'C' ? classes : block;
  }
};

inline std::string text_of(const int64_t* dimensions, int rank) {
  std::string text = "[";
  for (int d = 0; d < rank; ++d) {
    text += (d == 0 ? "" : ",") + (dimensions[d] < 0 ? "?" : std::to_string(dimensions[d]));
  }
  return text + "]";
}

// What is wrong with an array of these dimensions; empty if nothing is. Sizes that are not known yet are taken from it.
inline std::string misfit(const Array& array, const int64_t* dimensions, int rank, Sizes* sizes) {
  int64_t expected[kMaxRank];
  int count = 0;
  for_each_dimension(array.shape, [&](char c) { expected[count++] = c <= '9' ? c - '0' : sizes->of(c); });
  bool fits = rank == count, is_none = fits && array.may_be_none();
  for (int d = 0; d < count && d < rank; ++d) {
    fits = fits && (expected[d] < 0 || expected[d] == dimensions[d]);
    is_none = is_none && dimensions[d] == 0;
  }
  if (is_none) return "";
  const auto message = [&](const std::string& expected, const char* got) {
    return array.name + (": expected " + expected + ", got ") + got + text_of(dimensions, rank);
  };
  if (!fits) return message("shape " + text_of(expected, count), "");
  const int64_t* next = dimensions;
  for_each_dimension(array.shape, [&](char c) {
    if (c > '9') sizes->of(c) = *next;
    ++next;
  });
  const bool is_weights = strcmp(array.name, "weights") == 0;
  return is_weights && sizes->classes == 0 ? message("at least one class", "shape ") : "";
}

}  // namespace lsoftmax

#endif  // LSOFTMAX_CORE_ARRAYS_H_
