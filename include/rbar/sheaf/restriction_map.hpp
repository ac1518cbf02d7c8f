// Restriction maps of a cellular sheaf: ρ(x) = A x + b takes the state of a node into the space where it is compared
// with its neighbour's (Hansen, Ghrist, "Toward a spectral theory of cellular sheaves", 2019; the kinds are those of
// the architecture decision record ADR-014). What is compared, and for how much, is in residual.hpp.
#pragma once

#include "rbar/nn/linear.hpp"
#include "rbar/sheaf/restriction_kinds.hpp"

#include <algorithm>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace rbar {

enum class RestrictionMapKind { identity, diagonal, projection, dense, low_rank, csr };

inline constexpr RestrictionMapKind all_restriction_map_kinds[] = {
    RestrictionMapKind::identity, RestrictionMapKind::diagonal, RestrictionMapKind::projection,
    RestrictionMapKind::dense,    RestrictionMapKind::low_rank, RestrictionMapKind::csr};
constexpr const char* name_of(RestrictionMapKind kind) {
  constexpr const char* names[] = {"identity", "diagonal", "projection", "dense", "low_rank", "csr"};
  return names[static_cast<int>(kind)];
}
constexpr bool parse(std::string_view text, RestrictionMapKind& kind) {
  for (const RestrictionMapKind candidate : all_restriction_map_kinds)
    if (text == name_of(candidate)) return kind = candidate, true;
  return false;
}

// Works on the rows of anything, [N, in] -> [N, out], with the interface of Linear. Everything stored of A and b is
// trained; index lists are not. Errors: sizes below 1, an index out of range, a matrix of another width, x and y with
// different numbers of rows, a gradient of another kind.
template <class T>
struct RestrictionMap {
  using Scalar = T;

  // In the order of RestrictionMapKind.
  std::variant<IdentityRestriction<T>, DiagonalRestriction<T>, ProjectionRestriction<T>, DenseRestriction<T>,
               LowRankRestriction<T>, CsrRestriction<T>>
      linear;         // A
  Tensor<T, 1> bias;  // b [out] or empty

  // --- how they are made: A drawn from rng where it is stored, b = 0 ------------------------------------------

  static RestrictionMap identity(Index dim, bool has_bias = false) {
    require_sizes(dim, dim);
    return {IdentityRestriction<T>{dim}, has_bias};
  }
  static RestrictionMap diagonal(Index dim, bool has_bias, Rng& rng) {
    require_sizes(dim, dim);
    return {DiagonalRestriction<T>(dim, rng), has_bias};
  }
  static RestrictionMap projection(Index in, std::vector<Index> kept, bool has_bias = false) {
    require_sizes(in, static_cast<Index>(kept.size()));
    for (const Index coordinate : kept)
      require(coordinate >= 0 && coordinate < in, "RestrictionMap::projection", "kept", "coordinates below in",
              coordinate);
    return {ProjectionRestriction<T>{in, std::move(kept)}, has_bias};
  }
  static RestrictionMap dense(Index in, Index out, bool has_bias, Rng& rng) {
    require_sizes(in, out);
    return {DenseRestriction<T>(in, out, /*has_bias=*/false, rng), has_bias};
  }
  static RestrictionMap dense(ConstMatrixView<T> matrix) {
    require_sizes(matrix.cols(), matrix.rows());
    DenseRestriction<T> map;
    ensure_shape(map.weight, {matrix.rows(), matrix.cols()});
    std::copy_n(matrix.data(), matrix.size(), map.weight.data());
    return {std::move(map), /*has_bias=*/false};
  }
  static RestrictionMap low_rank(Index in, Index out, Index rank, bool has_bias, Rng& rng) {
    require_sizes(in, out);
    require(rank >= 1 && rank <= std::min(in, out), "RestrictionMap::low_rank", "rank", "1 <= rank <= min(in, out)",
            rank);
    return {LowRankRestriction<T>(in, out, rank, rng), has_bias};
  }
  // A pattern in compressed rows; the values are drawn for as many terms a row and a column as there are on average.
  static RestrictionMap csr(Index in, std::vector<Index> row_start, std::vector<Index> column, bool has_bias,
                            Rng& rng) {
    constexpr const char* where = "RestrictionMap::csr";
    const Index out = static_cast<Index>(row_start.size()) - 1, count = static_cast<Index>(column.size());
    require_sizes(in, out);
    require(row_start.front() == 0 && row_start.back() == count, where, "row_start", "0 ... number of columns", count);
    require(std::is_sorted(row_start.begin(), row_start.end()), where, "row_start", "ascending numbers", "others");
    for (const Index c : column) require(c >= 0 && c < in, where, "column", "numbers below in", c);
    CsrRestriction<T> map{in, std::move(row_start), std::move(column), Tensor<T, 1>(count)};
    const double terms = static_cast<double>(count) * (1.0 / static_cast<double>(in) + 1.0 / static_cast<double>(out));
    const double bound = std::sqrt(6.0 / std::max(1.0, terms));
    for (T& value : elements(map.values)) value = static_cast<T>(rng.uniform(-bound, bound));
    return {std::move(map), has_bias};
  }
  // By the name of a config. A projection keeps `out` coordinates drawn from rng; csr needs a pattern and is refused.
  static RestrictionMap of_kind(RestrictionMapKind kind, Index in, Index out, Index rank, bool has_bias, Rng& rng) {
    constexpr const char* where = "RestrictionMap::of_kind";
    require_sizes(in, out);
    switch (kind) {
      case RestrictionMapKind::identity:
        require(in == out, where, "out of an identity", in, out);
        return identity(in, has_bias);
      case RestrictionMapKind::diagonal:
        require(in == out, where, "out of a diagonal", in, out);
        return diagonal(in, has_bias, rng);
      case RestrictionMapKind::projection: {
        require(out <= in, where, "out of a projection", "at most in", out);
        std::vector<Index> kept;
        for (Index i = 0; i < in; ++i)  // each subset is as likely as any other (Knuth's algorithm S)
          if (static_cast<Index>(rng.below(static_cast<std::uint64_t>(in - i))) < out - static_cast<Index>(kept.size()))
            kept.push_back(i);
        return projection(in, std::move(kept), has_bias);
      }
      case RestrictionMapKind::dense:
        return dense(in, out, has_bias, rng);
      case RestrictionMapKind::low_rank:
        return low_rank(in, out, rank, has_bias, rng);
      case RestrictionMapKind::csr:
        break;
    }
    throw Error(where, "kind", "a kind that needs no pattern", name_of(kind));
  }

  // --- the layer ------------------------------------------------------------------------------------------------

  RestrictionMapKind kind() const { return static_cast<RestrictionMapKind>(linear.index()); }
  Index in() const {
    return std::visit([](const auto& map) { return map.in(); }, linear);
  }
  Index out() const {
    return std::visit([](const auto& map) { return map.out(); }, linear);
  }

  void forward(ConstMatrixView<T> x, MatrixView<T> y) const {
    require_shape("RestrictionMap::forward", "x", x, {-1, in()});
    require_shape("RestrictionMap::forward", "y", y, {x.rows(), out()});
    const bool has_bias = bias.size() > 0;
    if (has_bias) detail::fill_rows(bias.data(), y.rows(), y.cols(), y.data(), y.cols());
    std::visit([&](const auto& map) { map.product(x, y, has_bias); }, linear);
  }

  // dA += dyᵀ x, db += Σ dy, dx (+)= dy A. An empty dx is skipped.
  void backward(ConstMatrixView<T> dy, ConstMatrixView<T> x, MatrixView<T> dx, RestrictionMap& grad,
                bool accumulate_dx = false) const {
    require_shape("RestrictionMap::backward", "x", x, {-1, in()});
    require_shape("RestrictionMap::backward", "dy", dy, {x.rows(), out()});
    require(same_sizes(grad), "RestrictionMap::backward", "gradient", "the map's kind and sizes", name_of(grad.kind()));
    if (dx.size() > 0) require_shape("RestrictionMap::backward", "dx", dx, {x.rows(), in()});
    if (grad.bias.size() > 0) detail::add_column_sums(dy, grad.bias.data());
    std::visit([&]<class Map>(const Map& map) { map.backward(dy, x, dx, std::get<Map>(grad.linear), accumulate_dx); },
               linear);
  }

  // A [out, in].
  Matrix<T> matrix() const {
    const Matrix<T> basis = Matrix<T>::Identity(in(), in());
    Matrix<T> transposed(in(), out());
    std::visit(
        [&](const auto& map) {
          map.product(ConstMatrixView<T>(basis.data(), in(), in()), MatrixView<T>(transposed.data(), in(), out()),
                      false);
        },
        linear);
    return transposed.transpose();
  }

  void parameters(auto&& visit) {
    std::visit([&](auto& map) { map.parameters(visit); }, linear);
    if (bias.size() > 0) visit("bias", bias);
  }
  // Dense matrices and factors.
  void linears(auto&& visit) {
    std::visit(
        [&](auto& map) {
          if constexpr (requires { map.linears(visit); }) map.linears(visit);
        },
        linear);
  }

  RestrictionMap() : linear(IdentityRestriction<T>{}) {}

 private:
  bool same_sizes(const RestrictionMap& other) const {
    if (other.kind() != kind() || other.in() != in() || other.out() != out()) return false;
    if (const auto* factors = std::get_if<LowRankRestriction<T>>(&linear))
      if (factors->rank() != std::get<LowRankRestriction<T>>(other.linear).rank()) return false;
    if (const auto* pattern = std::get_if<CsrRestriction<T>>(&linear))
      if (pattern->values.size() != std::get<CsrRestriction<T>>(other.linear).values.size()) return false;
    return other.bias.size() == bias.size();
  }
  template <class Kind>
  RestrictionMap(Kind map, bool has_bias) : linear(std::move(map)), bias(has_bias ? out() : 0) {
    bias.setZero();
  }

  static void require_sizes(Index in, Index out) {
    require(in > 0 && out > 0, "RestrictionMap", "sizes in, out", "at least 1", std::min(in, out));
  }
};

// outer ∘ inner as one map: A = A_o A_i, b = A_o b_i + b_o. Diagonals stay diagonal, projections projections, an
// identity leaves the other's kind; everything else becomes dense. Errors: sizes that do not meet.
template <class T>
RestrictionMap<T> compose(const RestrictionMap<T>& outer, const RestrictionMap<T>& inner) {
  require(outer.in() == inner.out(), "compose", "outer.in", inner.out(), outer.in());
  RestrictionMap<T> folded;
  if (inner.kind() == RestrictionMapKind::identity) {
    folded.linear = outer.linear;
  } else if (outer.kind() == RestrictionMapKind::identity) {
    folded.linear = inner.linear;
  } else if (const auto* o = std::get_if<DiagonalRestriction<T>>(&outer.linear),
             *i = std::get_if<DiagonalRestriction<T>>(&inner.linear);
             o && i) {
    DiagonalRestriction<T> diagonal = *i;
    for (Index d = 0; d < diagonal.in(); ++d) diagonal.diagonal(d) *= o->diagonal(d);
    folded.linear = std::move(diagonal);
  } else if (const auto* p = std::get_if<ProjectionRestriction<T>>(&outer.linear),
             *q = std::get_if<ProjectionRestriction<T>>(&inner.linear);
             p && q) {
    ProjectionRestriction<T> projection{q->from, p->kept};
    for (Index& coordinate : projection.kept) coordinate = q->kept[static_cast<std::size_t>(coordinate)];
    folded.linear = std::move(projection);
  } else {
    const Matrix<T> product = outer.matrix().lazyProduct(inner.matrix());
    folded = RestrictionMap<T>::dense(ConstMatrixView<T>(product.data(), product.rows(), product.cols()));
  }
  if (inner.bias.size() > 0) {
    folded.bias = Tensor<T, 1>(outer.out());
    outer.forward(ConstMatrixView<T>(inner.bias.data(), 1, inner.out()),
                  MatrixView<T>(folded.bias.data(), 1, outer.out()));
  } else {
    folded.bias = outer.bias;
  }
  return folded;
}

// A chain of maps that stay apart, so that each is trained: ρ = ρ_n ∘ ... ∘ ρ_1, with the interface of one map.
// Errors: an empty chain, sizes that do not meet, and those of the maps.
template <class T>
struct ComposedRestrictionMap {
  using Scalar = T;

  std::vector<RestrictionMap<T>> maps;  // ρ_1 first

  ComposedRestrictionMap() = default;
  explicit ComposedRestrictionMap(std::vector<RestrictionMap<T>> maps_) : maps(std::move(maps_)) {
    require(!maps.empty(), "ComposedRestrictionMap", "maps", "at least 1", 0);
    for (std::size_t i = 1; i < maps.size(); ++i)
      require(maps[i].in() == maps[i - 1].out(), "ComposedRestrictionMap", "in of the next map", maps[i - 1].out(),
              maps[i].in());
  }

  Index in() const { return maps.front().in(); }
  Index out() const { return maps.back().out(); }

  void forward(ConstMatrixView<T> x, MatrixView<T> y) const {
    const auto states = run_inner(x, simd::thread_scratch<T, ComposedRestrictionMap>(x.rows() * inner_width()));
    maps.back().forward(states, y);
  }

  // The states between the maps are computed again, from first to last; their gradients follow from last to first.
  void backward(ConstMatrixView<T> dy, ConstMatrixView<T> x, MatrixView<T> dx, ComposedRestrictionMap& grad,
                bool accumulate_dx = false) const {
    require(grad.maps.size() == maps.size(), "ComposedRestrictionMap::backward", "maps of the gradient", maps.size(),
            grad.maps.size());
    require_shape("ComposedRestrictionMap::backward", "dy", dy, {x.rows(), out()});
    const Index count = x.rows();
    T* states = simd::thread_scratch<T, ComposedRestrictionMap>(2 * count * inner_width());
    T* gradients = states + count * inner_width();
    run_inner(x, states);
    T* state = gradients;  // one past the last state
    T* gradient = gradients + count * inner_width();
    const T* above = dy.data();
    for (std::size_t i = maps.size(); i-- > 1;) {
      const RestrictionMap<T>& map = maps[i];
      state -= count * map.in();
      gradient -= count * map.in();
      map.backward(ConstMatrixView<T>(above, count, map.out()), ConstMatrixView<T>(state, count, map.in()),
                   MatrixView<T>(gradient, count, map.in()), grad.maps[i]);
      above = gradient;
    }
    maps.front().backward(ConstMatrixView<T>(above, count, maps.front().out()), x, dx, grad.maps.front(),
                          accumulate_dx);
  }

  Matrix<T> matrix() const {
    Matrix<T> product = maps.front().matrix();
    for (std::size_t i = 1; i < maps.size(); ++i) product = maps[i].matrix().lazyProduct(product).eval();
    return product;
  }

  void parameters(auto&& visit) {
    for (std::size_t i = 0; i < maps.size(); ++i) visit_layer(visit, std::to_string(i), maps[i]);
  }

 private:
  Index inner_width() const {
    Index width = 0;
    for (std::size_t i = 1; i < maps.size(); ++i) width += maps[i].in();
    return width;
  }
  // The inputs of the maps after the first, one after the other in `states`; returns that of the last map.
  ConstMatrixView<T> run_inner(ConstMatrixView<T> x, T* states) const {
    const T* state = x.data();
    Index width = x.cols();
    for (std::size_t i = 0; i + 1 < maps.size(); ++i) {
      maps[i].forward(ConstMatrixView<T>(state, x.rows(), width), MatrixView<T>(states, x.rows(), maps[i].out()));
      state = states;
      width = maps[i].out();
      states += x.rows() * width;
    }
    return ConstMatrixView<T>(state, x.rows(), width);
  }
};

}  // namespace rbar
