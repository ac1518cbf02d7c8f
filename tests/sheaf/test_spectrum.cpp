#include "nn/support.hpp"
#include "rbar/sheaf/spectrum.hpp"
#include "sheaf/random_sheaf.hpp"

#include <limits>
#include <numbers>

using namespace rbar;
using namespace rbar::test;

namespace {

using Map = RestrictionMap<double>;

SparseMatrix ring_laplacian(Index nodes, Index dim) {
  std::vector<SheafEdge> edges;
  for (Index u = 0; u < nodes; ++u) edges.push_back({u, (u + 1) % nodes});
  std::vector<Index> dims(static_cast<std::size_t>(nodes), dim);
  return sheaf_laplacian(SheafGraph<double>(std::move(dims), {Map::identity(dim)}, std::move(edges)));
}

void check_spectrum(const std::vector<double>& spectrum, const std::vector<double>& expected) {
  REQUIRE(spectrum.size() == expected.size());
  for (std::size_t i = 0; i < expected.size(); ++i) CHECK(spectrum[i] == Approx(expected[i]).margin(1e-11));
}

}  // namespace

TEST_CASE("path-3 has the spectrum 0, 1, 3; a triangle with two dimensions 0, 0, 3, 3, 3, 3") {
  const SheafGraph<double> path({1, 1, 1}, {Map::identity(1)}, {{0, 1}, {1, 2}});
  const auto of_path = smallest_eigenvalues(sheaf_laplacian(path));
  check_spectrum(of_path, {0, 1, 3});
  CHECK(summarise_spectrum(of_path).lambda_2 == Approx(1));
  CHECK(summarise_spectrum(of_path).gap == Approx(1));
  const auto of_triangle = smallest_eigenvalues(ring_laplacian(3, 2));
  check_spectrum(of_triangle, {0, 0, 3, 3, 3, 3});
  CHECK(summarise_spectrum(of_triangle).lambda_2 == Approx(0).margin(1e-12));
  CHECK(summarise_spectrum(of_triangle).gap == Approx(3));
}

TEST_CASE("a ring's eigenvalues are 4 sin²(πk/n), each as often as the states have dimensions, twice but for k = 0") {
  const auto spectrum = smallest_eigenvalues(ring_laplacian(50, 2));
  const double first = 4 * std::pow(std::sin(std::numbers::pi / 50), 2);
  const double second = 4 * std::pow(std::sin(2 * std::numbers::pi / 50), 2);
  check_spectrum(spectrum, {0, 0, first, first, first, first, second, second});
}

#if defined(RBAR_SPECTRA)

TEST_CASE("the solver for large matrices finds what the dense one finds, repeated eigenvalues included") {
  Rng rng(1);
  for (int repeat = 0; repeat < 30; ++repeat) {
    INFO("repeat " << repeat);
    SpectrumConfig config;
    config.count = 1 + random_below(rng, 10);
    const auto graph = random_sheaf<double>(40 + random_below(rng, 60), 30 + random_below(rng, 300), false, rng);
    const SparseMatrix laplacian = sheaf_laplacian(graph);
    config.dense_limit = laplacian.rows();
    const auto expected = smallest_eigenvalues(laplacian, config);
    config.dense_limit = 1;
    check_spectrum(smallest_eigenvalues(laplacian, config), expected);
  }
  SpectrumConfig large;
  large.dense_limit = 10;
  const double first = 4 * std::pow(std::sin(std::numbers::pi / 700), 2);
  check_spectrum(smallest_eigenvalues(ring_laplacian(700, 3), large), {0, 0, 0, first, first, first, first, first});

  // Kernels of far more dimensions than are asked for, dense input, nothing but zeros, an indefinite matrix.
  std::vector<SheafEdge> chain;
  for (Index u = 0; u < 39; ++u) chain.push_back({u, u + 1});
  const SheafGraph<double> seen_in_part(std::vector<Index>(40, 5), {Map::dense(5, 2, false, rng)}, chain);
  check_spectrum(smallest_eigenvalues(sheaf_laplacian(seen_in_part), large), std::vector<double>(8, 0.0));
  SparseMatrix diagonal(60, 60);
  for (Index i = 40; i < 60; ++i) diagonal.insert(i, i) = static_cast<double>(i);
  large.count = 5;
  check_spectrum(smallest_eigenvalues(diagonal, large), {0, 0, 0, 0, 0});
  check_spectrum(smallest_eigenvalues(Eigen::MatrixXd(diagonal), large), {0, 0, 0, 0, 0});
  check_spectrum(smallest_eigenvalues(SparseMatrix(60, 60), large), {0, 0, 0, 0, 0});
  diagonal.insert(0, 0) = -5;
  CHECK_THROWS_WITH(smallest_eigenvalues(diagonal, large), ContainsText("no negative eigenvalue"));
  diagonal.coeffRef(0, 0) = std::numeric_limits<double>::quiet_NaN();
  CHECK_THROWS_WITH(smallest_eigenvalues(diagonal, large), ContainsText("finite"));
}

#else

TEST_CASE("without Spectra a large matrix is refused") {
  SpectrumConfig config;
  config.dense_limit = 60;
  CHECK(smallest_eigenvalues(ring_laplacian(30, 2), config).size() == 8);
  CHECK_THROWS_WITH(smallest_eigenvalues(ring_laplacian(31, 2), config), ContainsText("without RBAR_SPECTRA"));
}

#endif

TEST_CASE("clusters of tokens that agree among themselves show as small eigenvalues") {
  // Three clusters far apart, tokens of one all alike: with s = .1 nothing holds the clusters together.
  const Index tokens = 30, dim = 8;
  Rng rng(2);
  Tensor<double, 2> hidden(tokens, dim);
  for (Index i = 0; i < tokens; ++i)
    for (Index d = 0; d < dim; ++d) hidden(i, d) = (i % 3 == d ? 2.0 : 0.0) + rng.normal(0, 0.05);
  const auto laplacian = coherence_laplacian<double>(rows(std::as_const(hidden)), rows(std::as_const(hidden)), 0.1);
  const auto spectrum = smallest_eigenvalues(laplacian);
  for (std::size_t i = 0; i < 3; ++i) CHECK(spectrum[i] == Approx(0).margin(1e-9));
  CHECK(spectrum[3] > 1);
  CHECK(summarise_spectrum(spectrum).gap == Approx(spectrum[3]));
  // Its weights, and the mean as the scale.
  const auto scaled = coherence_laplacian<double>(rows(std::as_const(hidden)), rows(std::as_const(hidden)));
  double sum = 0;
  const auto square = [&](Index i, Index j) { return (rows(hidden).row(i) - rows(hidden).row(j)).squaredNorm(); };
  for (Index i = 0; i < tokens; ++i)
    for (Index j = 0; j < i; ++j) sum += square(i, j) / static_cast<double>(tokens * (tokens - 1) / 2);
  CHECK(scaled(5, 1) == Approx(-std::exp(-square(5, 1) / sum)));
  CHECK(scaled(1, 5) == scaled(5, 1));
  CHECK((scaled * Eigen::VectorXd::Ones(tokens)).cwiseAbs().maxCoeff() < 1e-12);
  // Tokens that are all the same are one complete graph: 0, n, ..., n.
  Tensor<double, 2> same(4, 3);
  same.setConstant(1.5);
  check_spectrum(
      smallest_eigenvalues(coherence_laplacian<double>(rows(std::as_const(same)), rows(std::as_const(same)))),
      {0, 4, 4, 4});
  CHECK_THROWS_AS(coherence_laplacian<double>(rows(std::as_const(same)), rows(std::as_const(hidden))), Error);
  CHECK_THROWS_AS(coherence_laplacian<double>(rows(std::as_const(same)), rows(std::as_const(same)), -1), Error);
}

TEST_CASE("drift between two spectra, and its levels") {
  const std::vector<double> before = {0, 3, 4}, same = {0, 3, 4}, moved = {0, 3, 4.5}, far = {0, 6, 8};
  CHECK(summarise_spectrum(same, before).drift == 0);
  CHECK(summarise_spectrum(same).drift == 0);  // nothing to compare with
  CHECK(summarise_spectrum(moved, before).drift == Approx(0.5 / std::sqrt(9 + 4.5 * 4.5)));
  CHECK(summarise_spectrum(moved, before).level == DriftLevel::mild);
  CHECK(summarise_spectrum(far, before).drift == Approx(0.5));
  CHECK(spectral_drift(far, before) == spectral_drift(before, far));
  const std::vector<double> zeros = {0, 0};
  CHECK(spectral_drift(zeros, zeros) == 0);
  const std::pair<double, DriftLevel> levels[] = {{0, DriftLevel::none},     {0.049, DriftLevel::none},
                                                  {0.05, DriftLevel::mild},  {0.2, DriftLevel::strong},
                                                  {0.5, DriftLevel::severe}, {1, DriftLevel::severe}};
  for (const auto& [drift, level] : levels) CHECK(drift_level(drift) == level);
}

TEST_CASE("spectra refuse what does not fit") {
  CHECK_THROWS_AS(smallest_eigenvalues(Eigen::MatrixXd(2, 3)), Error);
  CHECK_THROWS_AS(smallest_eigenvalues(Eigen::MatrixXd()), Error);
  const double nan = std::numeric_limits<double>::quiet_NaN();
  CHECK_THROWS_WITH(smallest_eigenvalues(Eigen::MatrixXd::Constant(2, 2, nan)), ContainsText("finite"));
  CHECK_THROWS_AS(summarise_spectrum({}), Error);
  CHECK_THROWS_AS(summarise_spectrum(std::vector<double>{nan}), Error);
  SpectrumConfig config;
  CHECK_NOTHROW(config.validate());
  config.strong = 0.01;
  CHECK_THROWS_WITH(config.validate(), "SpectrumConfig: strong: expected a number above mild, got 0.01");
  for (auto member : {&SpectrumConfig::mild, &SpectrumConfig::strong, &SpectrumConfig::severe}) {
    config = {};
    config.*member = nan;
    CHECK_THROWS_AS(config.validate(), Error);
  }
  config = {};
  config.count = 0;
  CHECK_THROWS_AS(smallest_eigenvalues(Eigen::MatrixXd::Identity(2, 2), config), Error);
}
