#include "nn/support.hpp"
#include "rbar/sheaf/restriction_map.hpp"

#include <set>

using namespace rbar;
using namespace rbar::test;

namespace {

// Random compressed rows: some empty, a column possibly twice.
template <class T>
RestrictionMap<T> random_csr(Index in, Index out, bool bias, Rng& rng) {
  std::vector<Index> row_start = {0}, column;
  for (Index r = 0; r < out; ++r) {
    for (std::uint64_t e = rng.below(4); e > 0; --e)
      column.push_back(static_cast<Index>(rng.below(static_cast<std::uint64_t>(in))));
    row_start.push_back(static_cast<Index>(column.size()));
  }
  return RestrictionMap<T>::csr(in, row_start, column, bias, rng);
}

template <class T>
RestrictionMap<T> random_map(RestrictionMapKind kind, Index in, Index out, bool bias, Rng& rng) {
  if (kind == RestrictionMapKind::identity || kind == RestrictionMapKind::diagonal) out = in;
  if (kind == RestrictionMapKind::projection) out = std::min(in, out);
  auto map = kind == RestrictionMapKind::csr
                 ? random_csr<T>(in, out, bias, rng)
                 : RestrictionMap<T>::of_kind(kind, in, out, (std::min(in, out) + 1) / 2, bias, rng);
  for (T& value : elements(map.bias)) value = static_cast<T>(rng.normal());
  return map;
}

// A from what is stored, element by element.
Matrix<double> textbook_matrix(const RestrictionMap<double>& map) {
  Matrix<double> a = Matrix<double>::Zero(map.out(), map.in());
  if (map.kind() == RestrictionMapKind::identity) a.setIdentity();
  if (const auto* m = std::get_if<DiagonalRestriction<double>>(&map.linear))
    for (Index i = 0; i < map.in(); ++i) a(i, i) = m->diagonal(i);
  if (const auto* m = std::get_if<ProjectionRestriction<double>>(&map.linear))
    for (std::size_t r = 0; r < m->kept.size(); ++r) a(static_cast<Index>(r), m->kept[r]) = 1;
  if (const auto* m = std::get_if<DenseRestriction<double>>(&map.linear))
    for (Index r = 0; r < map.out(); ++r)
      for (Index c = 0; c < map.in(); ++c) a(r, c) = m->weight(r, c);
  if (const auto* m = std::get_if<LowRankRestriction<double>>(&map.linear))
    for (Index r = 0; r < map.out(); ++r)
      for (Index c = 0; c < map.in(); ++c)
        for (Index k = 0; k < m->rank(); ++k) a(r, c) += m->up.weight(r, k) * m->down.weight(k, c);
  if (const auto* m = std::get_if<CsrRestriction<double>>(&map.linear))
    for (Index r = 0; r < map.out(); ++r)
      for (auto e = m->row_start[static_cast<std::size_t>(r)]; e < m->row_start[static_cast<std::size_t>(r) + 1]; ++e)
        a(r, m->column[static_cast<std::size_t>(e)]) += m->values(e);
  return a;
}

Matrix<double> apply(const auto& map, const Tensor<double, 2>& x) {
  Matrix<double> y(x.dimension(0), map.out());
  map.forward(rows(x), MatrixView<double>(y.data(), y.rows(), y.cols()));
  return y;
}
ConstMatrixView<double> matrix_of(const Tensor<double, 2>& x) { return rows(x); }

}  // namespace

TEST_CASE("A = I, b = (.5, .5), x = (1, 2) gives (1.5, 2.5)") {
  auto map = RestrictionMap<double>::identity(2, /*has_bias=*/true);
  map.bias.setConstant(0.5);
  Tensor<double, 2> x(1, 2);
  x.setValues({{1, 2}});
  CHECK(apply(map, x) == Matrix<double>{{1.5, 2.5}});
}

TEST_CASE("every kind of map is its matrix and its bias") {
  Rng rng(1);
  for (const RestrictionMapKind kind : all_restriction_map_kinds)
    for (const auto [count, in, out] : {std::array<Index, 3>{1, 1, 1}, {3, 17, 5}, {130, 9, 33}, {0, 4, 3}})
      for (const bool bias : {false, true}) {
        INFO(name_of(kind) << ", rows " << count << ", " << in << " -> " << out << ", bias " << bias);
        const auto map = random_map<double>(kind, in, out, bias, rng);
        CHECK(map.kind() == kind);
        CHECK(map.bias.size() == (bias ? map.out() : 0));
        const Matrix<double> a = textbook_matrix(map);
        CHECK((map.matrix() - a).cwiseAbs().maxCoeff() < 1e-13);
        const auto x = random_matrix<double>(count, in, 2);
        Matrix<double> expected = matrix_of(x) * a.transpose();
        for (Index n = 0; n < count && bias; ++n)
          for (Index r = 0; r < map.out(); ++r) expected(n, r) += map.bias(r);
        const Matrix<double> difference = apply(map, x) - expected;
        for (Index i = 0; i < difference.size(); ++i) CHECK(std::abs(difference.data()[i]) < 1e-12);
      }
}

TEST_CASE("restriction maps: gradients and threads") {
  Rng rng(2);
  for (const RestrictionMapKind kind : all_restriction_map_kinds) {
    INFO(name_of(kind));
    for (const auto [count, in, out] : {std::array<Index, 3>{3, 7, 5}, {131, 9, 17}, {2, 1, 1}}) {
      const auto map = random_map<double>(kind, in, out, true, rng);
      check_gradients(map, count, in, map.out(), 10);
    }
    const auto map = random_map<float>(kind, 33, 70, true, rng);
    check_threads(map, 300, 33, map.out());
  }
}

TEST_CASE("a row is mapped to the same bits alone and among others") {
  Rng rng(3);
  for (const RestrictionMapKind kind : all_restriction_map_kinds) {
    INFO(name_of(kind));
    const auto map = random_map<float>(kind, 45, 19, true, rng);
    const auto x = random_matrix<float>(37, 45, 4);
    Tensor<float, 2> y(37, map.out()), alone(1, map.out());
    map.forward(rows(x), rows(y));
    for (const Index n : {0, 5, 36}) {
      map.forward(ConstMatrixView<float>(&x(n, 0), 1, 45), rows(alone));
      CHECK(std::equal(alone.data(), alone.data() + alone.size(), &y(n, 0)));
    }
  }
}

TEST_CASE("composition, folded and as a chain, is one map after the other") {
  Rng rng(5);
  for (const RestrictionMapKind outer_kind : all_restriction_map_kinds)
    for (const RestrictionMapKind inner_kind : all_restriction_map_kinds)
      for (const bool bias : {false, true}) {
        INFO(name_of(outer_kind) << " after " << name_of(inner_kind) << ", bias " << bias);
        const auto inner = random_map<double>(inner_kind, 9, 7, bias, rng);
        const auto outer = random_map<double>(outer_kind, inner.out(), 5, true, rng);
        const auto folded = compose(outer, inner);
        const ComposedRestrictionMap<double> chain({inner, outer});
        const auto x = random_matrix<double>(6, 9, 6);
        Tensor<double, 2> between(6, inner.out());
        inner.forward(rows(x), rows(between));
        const Matrix<double> expected = apply(outer, between);
        CHECK((apply(folded, x) - expected).cwiseAbs().maxCoeff() < 1e-12);
        CHECK(apply(chain, x) == expected);
        CHECK((chain.matrix() - folded.matrix()).cwiseAbs().maxCoeff() < 1e-12);
        if (outer_kind == inner_kind && outer_kind <= RestrictionMapKind::projection)
          CHECK(folded.kind() == outer_kind);
        if (inner_kind == RestrictionMapKind::identity) CHECK(folded.kind() == outer_kind);
        if (outer_kind == RestrictionMapKind::identity) CHECK(folded.kind() == inner_kind);
      }
}

TEST_CASE("a chain of maps: parameters, gradients, threads") {
  Rng rng(7);
  const ComposedRestrictionMap<double> chain({random_map<double>(RestrictionMapKind::diagonal, 9, 9, true, rng),
                                              random_map<double>(RestrictionMapKind::low_rank, 9, 12, false, rng),
                                              random_map<double>(RestrictionMapKind::csr, 12, 11, true, rng),
                                              random_map<double>(RestrictionMapKind::dense, 11, 4, true, rng)});
  std::vector<std::string> names;
  for (const auto& parameter : parameters_of(chain)) names.push_back(parameter.name);
  CHECK(names == std::vector<std::string>{"0.diagonal", "0.bias", "1.down.weight", "1.up.weight", "2.values", "2.bias",
                                          "3.weight", "3.bias"});
  check_gradients(chain, 5, 9, 4, 8);
  check_gradients(ComposedRestrictionMap<double>({chain.maps[3]}), 3, 11, 4, 9);  // nothing in between
  const ComposedRestrictionMap<float> single({random_map<float>(RestrictionMapKind::dense, 33, 20, true, rng),
                                              random_map<float>(RestrictionMapKind::diagonal, 20, 20, true, rng)});
  check_threads(single, 300, 33, 20);
}

TEST_CASE("maps start with outputs of unit spread, and apart") {
  Rng rng(11);
  const Index in = 200, out = 200;
  const auto x = random_matrix<double>(300, in, 12);
  for (const RestrictionMapKind kind : all_restriction_map_kinds) {
    if (kind == RestrictionMapKind::csr) continue;
    INFO(name_of(kind));
    const auto first = RestrictionMap<double>::of_kind(kind, in, out, 20, true, rng);
    const auto second = RestrictionMap<double>::of_kind(kind, in, out, 20, true, rng);
    const Matrix<double> y = apply(first, x);
    CHECK(y.squaredNorm() / static_cast<double>(y.size()) == Approx(1).epsilon(0.25));
    if (count_parameters(first) > first.out()) CHECK((first.matrix() - second.matrix()).norm() > 1);
  }
  const auto kept = std::get<ProjectionRestriction<double>>(
                        RestrictionMap<double>::of_kind(RestrictionMapKind::projection, 50, 20, 0, false, rng).linear)
                        .kept;
  CHECK(kept.size() == 20);
  CHECK(std::set<Index>(kept.begin(), kept.end()).size() == 20);
  CHECK(kept.back() < 50);
}

TEST_CASE("names of the kinds") {
  for (const RestrictionMapKind kind : all_restriction_map_kinds) {
    RestrictionMapKind parsed = RestrictionMapKind::identity;
    CHECK(parse(name_of(kind), parsed));
    CHECK(parsed == kind);
  }
  RestrictionMapKind kind = RestrictionMapKind::csr;
  CHECK_FALSE(parse("Dense", kind));
  CHECK(kind == RestrictionMapKind::csr);
}

TEST_CASE("restriction maps refuse what does not fit") {
  using Map = RestrictionMap<float>;
  Rng rng(13);
  const auto map = Map::dense(4, 3, true, rng);
  Tensor<float, 2> x(2, 5), y(2, 3), good(2, 4);
  CHECK_THROWS_WITH(map.forward(rows(std::as_const(x)), rows(y)),
                    "RestrictionMap::forward: x: expected [-1, 4], got [2, 5]");
  CHECK_THROWS_AS(map.forward(rows(std::as_const(good)), rows(x)), Error);
  auto grad = zeros_like(map);
  auto other = zeros_like(Map::low_rank(4, 3, 2, true, rng));
  CHECK_THROWS_WITH(map.backward(rows(std::as_const(y)), rows(std::as_const(good)), rows(good), other),
                    ContainsText("gradient: expected the map's kind and sizes, got low_rank"));
  CHECK_THROWS_AS(map.backward(rows(std::as_const(y)), rows(std::as_const(good)), rows(x), grad), Error);
  CHECK_THROWS_AS(map.backward(rows(std::as_const(good)), rows(std::as_const(good)), rows(good), grad), Error);
  const auto refuses = [&](const Map& one, const Map& another) {
    auto unlike = zeros_like(another);
    CHECK_THROWS_WITH(one.backward(rows(std::as_const(y)), rows(std::as_const(good)), rows(good), unlike),
                      ContainsText("the map's kind and sizes"));
  };
  refuses(Map::low_rank(4, 3, 2, true, rng), Map::low_rank(4, 3, 1, true, rng));
  refuses(Map::csr(4, {0, 1, 2, 3}, {0, 1, 2}, true, rng), Map::csr(4, {0, 1, 2, 2}, {0, 1}, true, rng));
  refuses(map, Map::dense(4, 3, false, rng));
  const ComposedRestrictionMap<float> chain({map, Map::dense(3, 3, true, rng)});
  auto chain_grad = zeros_like(chain);
  const Tensor<float, 2> wide(2, 4), short_dy(1, 3);
  for (const auto* dy : {&wide, &short_dy})
    CHECK_THROWS_WITH(chain.backward(rows(*dy), rows(std::as_const(good)), rows(good), chain_grad),
                      ContainsText("ComposedRestrictionMap::backward: dy: expected [2, 3]"));
  CHECK_THROWS_AS(Map::identity(0), Error);
  CHECK_THROWS_AS(Map::dense(0, 3, true, rng), Error);
  CHECK_THROWS_AS(Map::diagonal(-1, true, rng), Error);
  CHECK_THROWS_AS(Map::projection(3, {}), Error);
  CHECK_THROWS_AS(Map::projection(3, {0, 3}), Error);
  CHECK_THROWS_AS(Map::projection(3, {-1}), Error);
  CHECK_THROWS_AS(Map::low_rank(4, 3, 4, true, rng), Error);
  CHECK_THROWS_AS(Map::low_rank(4, 3, 0, true, rng), Error);
  CHECK_THROWS_AS(Map::csr(4, {}, {}, true, rng), Error);
  CHECK_THROWS_AS(Map::csr(4, {0, 2, 1}, {0}, true, rng), Error);
  CHECK_THROWS_AS(Map::csr(4, {0, 1}, {4}, true, rng), Error);
  CHECK_THROWS_AS(Map::csr(4, {0, 2}, {1}, true, rng), Error);
  CHECK_THROWS_AS(Map::of_kind(RestrictionMapKind::identity, 4, 3, 0, true, rng), Error);
  CHECK_THROWS_AS(Map::of_kind(RestrictionMapKind::diagonal, 4, 3, 0, true, rng), Error);
  CHECK_THROWS_AS(Map::of_kind(RestrictionMapKind::projection, 3, 4, 0, true, rng), Error);
  CHECK_THROWS_WITH(Map::of_kind(RestrictionMapKind::csr, 4, 3, 0, true, rng), ContainsText("csr"));
  CHECK_THROWS_AS(compose(map, map), Error);
  CHECK_THROWS_AS(ComposedRestrictionMap<float>({map, map}), Error);
  CHECK_THROWS_AS(ComposedRestrictionMap<float>(std::vector<Map>{}), Error);
}
