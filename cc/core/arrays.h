// The arrays of Arguments by their names, for whom they reach at run time: TensorFlow's ops and XLA's calls.
//
// Inputs and outputs of the ops bear these names, so the list of arguments.h alone says what each has to be and where
// it goes.
#ifndef LSOFTMAX_CORE_ARRAYS_H_
#define LSOFTMAX_CORE_ARRAYS_H_

#include <stdint.h>

#include <string>
#include <string_view>
#include <type_traits>

#include "core/arguments.h"
#include "core/grad_unit.h"

namespace lsoftmax {

// kReal: T; kWide: Real<T>, what T is computed in; kLabel: int32 or int64.
enum class Element { kReal, kWide, kDouble, kFloat, kInt32, kInt64, kLabel };

// The sizes of a shape: numbers, or letters, the L-th of which is -1 - L.
constexpr std::string_view kLetters = "NDCB";
constexpr int kMaxRank = 2;

struct Array {
  const char* name;
  const char* shape;
  Element element;
  int rank;
  int sizes[kMaxRank];
  bool may_be_none;   // "[...] or none", which has the shape [0]
  bool may_be_empty;  // not "[..., C > 0]": it has a class

  constexpr Array(const char* name, const char* shape, Element element)
      : name(name), shape(shape), element(element), rank(0), sizes{}, may_be_none(false), may_be_empty(true) {
    for (; *shape != ']'; ++shape) {
      const size_t letter = kLetters.find(*shape);
      if ('1' <= *shape && *shape <= '9') sizes[rank++] = *shape - '0';
      if (letter != kLetters.npos) sizes[rank++] = -1 - static_cast<int>(letter);
      if (*shape == '>') may_be_empty = false;
    }
    may_be_none = std::string_view(shape) == "] or none";
  }

  // The array of an op or call whose weights are class-major or not: if so, what is [D, C] is [C, D], a block of it
  // [B, D].
  constexpr Array in_layout(bool class_major) const {
    Array array = *this;
    if (class_major && rank == 2 && sizes[0] == size_of('D') &&
        (sizes[1] == size_of('C') || sizes[1] == size_of('B'))) {
      array.sizes[0] = sizes[1];
      array.sizes[1] = sizes[0];
    }
    return array;
  }

  // The dimension of the classes.
  constexpr int class_dimension() const { return rank > 0 && sizes[0] == size_of('C') ? 0 : rank - 1; }

 private:
  static constexpr int size_of(char letter) { return -1 - static_cast<int>(kLetters.find(letter)); }
};

struct AnyReal {};  // stands in for T
struct AnyWide {};
AnyWide widen(AnyReal);

template <typename Pointer>
constexpr Element element_of() {
  using Value = std::remove_const_t<std::remove_pointer_t<Pointer>>;
  if (std::is_same_v<Value, double>) return Element::kDouble;
  if (std::is_same_v<Value, float>) return Element::kFloat;
  if (std::is_same_v<Value, int32_t>) return Element::kInt32;
  if (std::is_same_v<Value, int64_t>) return Element::kInt64;
  if (std::is_same_v<Value, AnyWide>) return Element::kWide;
  return std::is_same_v<Value, Labels> ? Element::kLabel : Element::kReal;
}

template <typename T>
constexpr Array kArraysOf[] = {
#define LSOFTMAX_ROW(TYPE, NAME, SHAPE) {#NAME, SHAPE, element_of<TYPE>()},
    LSOFTMAX_FOR_EACH_ARRAY(LSOFTMAX_ROW)
#undef LSOFTMAX_ROW
};
inline constexpr auto& kArrays = kArraysOf<AnyReal>;

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
  static constexpr void (*kSet[])(Arguments<T>*, void*) = {
#define LSOFTMAX_SET(TYPE, NAME, SHAPE) [](Arguments<T>* args, void* data) { point(&args->NAME, data); },
      LSOFTMAX_FOR_EACH_ARRAY(LSOFTMAX_SET)
#undef LSOFTMAX_SET
  };
  kSet[number](args, data);
}

// The same of an input: one that is none stays null.
template <typename T>
void take(Arguments<T>* args, int number, void* data, int64_t elements, bool wide_labels) {
  const bool is_none = kArrays[number].may_be_none && elements == 0;
  const bool is_one = number == number_of("grad_unit") && !kHasGradUnit<T>;
  if (is_none || is_one) return;
  point(args, number, data);
  if (number == number_of("labels")) args->labels.wide = wide_labels;
}

// What the letters of the shapes stand for; -1 where that is not known yet.
struct Sizes {
  int64_t of_letter[kLetters.size()] = {-1, -1, -1, -1};

  int64_t rows() const { return of_letter[0]; }
  int64_t depth() const { return of_letter[1]; }
  int64_t classes() const { return of_letter[2]; }
  int64_t block() const { return of_letter[3]; }
  int64_t operator[](int size) const { return size < 0 ? of_letter[-1 - size] : size; }
};

// Whether an array has the shape that it is to have, `rank` dimensions of which dimension(d) tells the size, or is
// none. Sizes that are not known yet are taken from it.
template <typename Dimension>
bool fits(const Array& array, int rank, const Dimension& dimension, Sizes* sizes) {
  if (array.may_be_none && rank == 1 && dimension(0) == 0) return true;
  if (rank != array.rank) return false;
  bool fits = true;
  for (int d = 0; d < rank; ++d) {
    const int64_t expected = (*sizes)[array.sizes[d]], got = dimension(d);
    fits = fits && (expected < 0 || expected == got);
  }
  for (int d = 0; fits && d < rank; ++d) {
    if (array.sizes[d] < 0) sizes->of_letter[-1 - array.sizes[d]] = dimension(d);
  }
  return fits && (array.may_be_empty || dimension(array.class_dimension()) > 0);
}

// What is wrong with an array that does not fit.
template <typename Dimension>
std::string about_misfit(const Array& array, int rank, const Dimension& dimension, const Sizes& sizes) {
  std::string expected, got;
  for (int d = 0; d < array.rank; ++d) {
    const int64_t size = sizes[array.sizes[d]];
    expected += (d == 0 ? "" : ",") + (size < 0 ? "?" : std::to_string(size));
  }
  for (int d = 0; d < rank; ++d) got += (d == 0 ? "" : ",") + std::to_string(dimension(d));
  if (rank == array.rank && !array.may_be_empty && dimension(array.class_dimension()) == 0) {
    return std::string(array.name) + ": expected at least one class, got shape [" + got + "]";
  }
  return std::string(array.name) + ": expected shape [" + expected + "], got [" + got + "]";
}

}  // namespace lsoftmax

#endif  // LSOFTMAX_CORE_ARRAYS_H_
