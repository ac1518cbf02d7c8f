// Rotary position embedding (Su et al., "RoFormer", arXiv:2104.09864): at position p the pair number
// i of a head's features is turned by the angle p·base^(−2i/d), so that the dot product of a query
// and a key depends on the distance of their positions only.
//   interleaved  pairs (x₂ᵢ, x₂ᵢ₊₁)      Llama's own checkpoints
//   half_split   pairs (xᵢ, x_{i+d/2})   GPT-NeoX, and Llama in the Hugging Face layout
// The backward pass turns by the opposite angle.
#pragma once

#include "rbar/core/parallel.hpp"
#include "rbar/core/tensor.hpp"

#include <algorithm>
#include <cmath>
#include <string_view>

namespace rbar {

enum class Rotary { none, interleaved, half_split };

inline constexpr Rotary all_rotary[] = {Rotary::none, Rotary::interleaved, Rotary::half_split};
constexpr const char* name_of(Rotary rotary) {
  switch (rotary) {
    case Rotary::none:
      return "none";
    case Rotary::interleaved:
      return "interleaved";
    case Rotary::half_split:
      return "half_split";
  }
  return "?";
}
constexpr bool parse(std::string_view text, Rotary& rotary) {
  for (const Rotary candidate : all_rotary)
    if (text == name_of(candidate)) return rotary = candidate, true;
  return false;
}

// cos and sin of every angle up to a position: part of a cache, computed when it gets too short.
template <class T>
struct RotaryTable {
  Tensor<T, 2> cosine, sine;  // [positions, head_dim / 2]
  double base = 0;

  Index positions() const { return cosine.dimension(0); }

  void ensure(Index positions_needed, Index head_dim, double base_) {
    require(head_dim > 0 && head_dim % 2 == 0, "RotaryTable", "head_dim", "a positive even number", head_dim);
    const Index half = head_dim / 2;
    if (positions() >= positions_needed && cosine.dimension(1) == half && base == base_) return;
    base = base_;
    ensure_shape(cosine, {positions_needed, half});
    ensure_shape(sine, {positions_needed, half});
    parallel_for(positions_needed, 64, [&](Index begin, Index end) {
      for (Index i = 0; i < half; ++i) {
        const double frequency = std::pow(base, -2.0 * static_cast<double>(i) / static_cast<double>(head_dim));
        for (Index position = begin; position < end; ++position) {
          cosine(position, i) = static_cast<T>(std::cos(static_cast<double>(position) * frequency));
          sine(position, i) = static_cast<T>(std::sin(static_cast<double>(position) * frequency));
        }
      }
    });
  }
};

namespace detail {

// Turns every head of every row by the angle of its position, forwards or (inverse) back.
template <class T, class PositionOf>
void rotate(Rotary kind, const RotaryTable<T>& table, MatrixView<T> x, PositionOf&& position_of, bool inverse) {
  if (kind == Rotary::none || x.size() == 0) return;
  const Index half = table.cosine.dimension(1), head_dim = 2 * half;
  require(x.cols() % head_dim == 0, "rotary", "row width", "a multiple of the head dimension", x.cols());
  // Distance of a pair's two elements, and of one pair to the next.
  const Index partner = kind == Rotary::interleaved ? 1 : half, next = kind == Rotary::interleaved ? 2 : 1;
  const T sign = inverse ? T(-1) : T(1);
  const Index chunk = std::max<Index>(1, 16384 / x.cols());
  parallel_for(x.rows(), chunk, [&](Index begin, Index end) {
    for (Index row = begin; row < end; ++row) {
      const Index position = position_of(row);
      require(position >= 0 && position < table.positions(), "rotary", "position", "one inside the table", position);
      const T* cosine = table.cosine.data() + position * half;
      const T* sine = table.sine.data() + position * half;
      for (T* head = x.data() + row * x.cols(); head != x.data() + (row + 1) * x.cols(); head += head_dim)
        for (Index i = 0; i < half; ++i) {
          T& a = head[i * next];
          T& b = head[i * next + partner];
          const T c = cosine[i], s = sign * sine[i], old_a = a, old_b = b;
          a = old_a * c - old_b * s;
          b = old_a * s + old_b * c;
        }
    }
  });
}

}  // namespace detail

// In place on rows [N, heads·head_dim]; position_of(row) gives the absolute position.
// Errors: rows that are no whole number of heads, a position beyond the table.
template <class T, class PositionOf>
void rotary_forward(Rotary kind, const RotaryTable<T>& table, MatrixView<T> x, PositionOf&& position_of) {
  detail::rotate(kind, table, x, position_of, /*inverse=*/false);
}
template <class T, class PositionOf>
void rotary_backward(Rotary kind, const RotaryTable<T>& table, MatrixView<T> dx, PositionOf&& position_of) {
  detail::rotate(kind, table, dx, position_of, /*inverse=*/true);
}

}  // namespace rbar
