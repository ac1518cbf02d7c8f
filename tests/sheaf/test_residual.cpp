#include "nn/support.hpp"
#include "rbar/sheaf/residual.hpp"
#include "support/differences.hpp"

#include <limits>

using namespace rbar;
using namespace rbar::test;

namespace {

template <class T>
Tensor<T, 2> energies_between(const Tensor<T, 2>& query, const Tensor<T, 2>& key, const T* center = nullptr) {
  Tensor<T, 2> energy(query.dimension(0), key.dimension(0));
  pairwise_energies<T>(rows(query), rows(key), rows(energy), center);
  return energy;
}

template <class T>
double definition(const Tensor<T, 2>& query, const Tensor<T, 2>& key, Index i, Index j) {
  double sum = 0;
  for (Index d = 0; d < query.dimension(1); ++d) {
    const double r = static_cast<double>(query(i, d)) - static_cast<double>(key(j, d));
    sum += r * r;
  }
  return sum;
}

}  // namespace

TEST_CASE("y = x + 1 in four dimensions has the energy 4, and r_uv = -r_vu") {
  const std::vector<double> x = {1, 2, 3, 4}, y = {2, 3, 4, 5};
  CHECK(edge_energy<double>(x, y) == 4);
  CHECK(edge_energy<double>(x, y, 0.25) == 1);
  std::vector<double> forth(4), back(4);
  residual<double>(x, y, forth);
  residual<double>(y, x, back);
  for (std::size_t d = 0; d < 4; ++d) {
    CHECK(forth[d] == -1);
    CHECK(back[d] == -forth[d]);
  }
}

TEST_CASE("pairwise energies are those of the definition; orthonormal rows differ by 2, equal rows by 0") {
  for (const auto [queries, keys, dim] :
       {std::array<Index, 3>{1, 1, 1}, {5, 3, 17}, {33, 70, 64}, {130, 7, 3}, {0, 2, 4}}) {
    INFO(queries << " queries, " << keys << " keys, dim " << dim);
    const auto query = random_matrix<double>(queries, dim, 1), key = random_matrix<double>(keys, dim, 2);
    const auto energy = energies_between(query, key);
    for (Index i = 0; i < queries; ++i)
      for (Index j = 0; j < keys; ++j) CHECK(energy(i, j) == Approx(definition(query, key, i, j)).epsilon(1e-12));
  }
  Tensor<double, 2> unit(3, 3);
  unit.setValues({{1, 0, 0}, {0, 1, 0}, {0, 0, 1}});
  const auto energy = energies_between(unit, unit);
  for (Index i = 0; i < 3; ++i)
    for (Index j = 0; j < 3; ++j) CHECK(energy(i, j) == Approx(i == j ? 0 : 2).margin(1e-15));
  const auto same = energies_between(random_matrix<float>(9, 70, 3), random_matrix<float>(9, 70, 3));
  for (const float e : elements(same)) CHECK(e >= 0);  // its diagonal would be negative by rounding
}

TEST_CASE("a common offset of 10 leaves fp32 energies of .006 intact, which the plain expansion loses") {
  Rng rng(4);
  const Index count = 40, dim = 64;
  Tensor<float, 2> query(count, dim), key(count, dim);
  for (float& value : elements(query)) value = static_cast<float>(10 + rng.normal(0, 0.007));
  for (float& value : elements(key)) value = static_cast<float>(10 + rng.normal(0, 0.007));
  const auto energy = energies_between(query, key);
  double worst = 0, worst_plain = 0;
  for (Index i = 0; i < count; ++i)
    for (Index j = 0; j < count; ++j) {
      const double exact = definition(query, key, i, j);
      CHECK(exact == Approx(0.006).epsilon(0.8));
      float query_norm = 0, key_norm = 0, dot = 0;
      for (Index d = 0; d < dim; ++d) {
        query_norm += query(i, d) * query(i, d);
        key_norm += key(j, d) * key(j, d);
        dot += query(i, d) * key(j, d);
      }
      const double plain = static_cast<double>(query_norm + key_norm - 2 * dot);
      worst = ::test::larger(worst, std::abs(static_cast<double>(energy(i, j)) - exact) / exact);
      worst_plain = ::test::larger(worst_plain, std::abs(plain - exact) / exact);
    }
  CHECK(worst < 1e-4);  // the states themselves are rounded to 1e-6, 1e-4 of their spread; the mean is off by as much
  CHECK(worst_plain > 0.5);
}

TEST_CASE("with a given center, a pair's energy does not depend on the keys that come later") {
  const auto query = random_matrix<float>(6, 21, 5), key = random_matrix<float>(9, 21, 6);
  std::vector<float> center(21, 0.1f);
  const auto energy = energies_between(query, key, center.data());
  auto changed = key;
  for (Index d = 0; d < 21; ++d) changed(8, d) = 100;
  const auto other = energies_between(query, changed, center.data());
  for (Index i = 0; i < 6; ++i) {
    CHECK(energy(i, 7) == other(i, 7));
    CHECK(energy(i, 8) != other(i, 8));
    CHECK(energy(i, 3) == Approx(definition(query, key, i, 3)).epsilon(1e-5));
  }
}

TEST_CASE("pairwise energies: the same bits on every number of threads") {
  const auto query = random_matrix<float>(300, 48, 7), key = random_matrix<float>(200, 48, 8);
  const auto first = energies_between(query, key);
  for (const int threads : {2, 5}) {
    set_num_threads(threads);
    const auto energy = energies_between(query, key);
    CHECK(std::equal(energy.data(), energy.data() + energy.size(), first.data()));
  }
  set_num_threads(1);
}

TEST_CASE("energies refuse no keys, other shapes and what is not finite") {
  const auto query = random_matrix<float>(3, 4, 9), key = random_matrix<float>(2, 4, 10);
  CHECK_THROWS_WITH(energies_between(query, Tensor<float, 2>(0, 4)), ContainsText("key: expected at least one"));
  CHECK_THROWS_AS(energies_between(query, random_matrix<float>(2, 5, 1)), Error);
  Tensor<float, 2> narrow(3, 1);
  CHECK_THROWS_AS(pairwise_energies<float>(rows(query), rows(key), rows(narrow)), Error);
  auto bad = query;
  bad(1, 2) = std::numeric_limits<float>::quiet_NaN();
  CHECK_THROWS_WITH(energies_between(bad, key), ContainsText("query: expected finite values, got nan at element 6"));
  CHECK_THROWS_WITH(energies_between(key, bad), ContainsText("key: expected finite values"));
  auto large = query;  // finite, the energy is not
  large(0, 0) = 1e30f;
  CHECK_THROWS_WITH(energies_between(large, key), ContainsText("energy: expected finite values"));
  CHECK_THROWS_WITH(energies_between(large, large), ContainsText("energy: expected finite values"));  // ∞ − ∞
  const std::vector<double> two = {1, 2}, three = {1, 2, 3}, infinite = {1, std::numeric_limits<double>::infinity()};
  std::vector<double> r(2);
  CHECK_THROWS_AS(edge_energy<double>(two, three), Error);
  CHECK_THROWS_AS(edge_energy<double>(two, infinite), Error);
  CHECK_THROWS_AS(residual<double>(two, three, r), Error);
  CHECK_THROWS_AS(residual<double>(three, three, r), Error);
}
