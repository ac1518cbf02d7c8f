#include "nn/support.hpp"
#include "rbar/sheaf/sheaf_laplacian.hpp"
#include "sheaf/random_sheaf.hpp"

using namespace rbar;
using namespace rbar::test;

namespace {

Eigen::VectorXd as_vector(const std::vector<double>& state) {
  return Eigen::Map<const Eigen::VectorXd>(state.data(), static_cast<Index>(state.size()));
}

}  // namespace

TEST_CASE("the Laplacian's energy is the sum of the edges' to 1e-12") {
  Rng rng(1);
  for (int repeat = 0; repeat < 200; ++repeat) {
    const bool bias = repeat % 2 == 0;
    INFO("repeat " << repeat << ", bias " << bias);
    const auto graph = random_sheaf<double>(1 + random_below(rng, 9), random_below(rng, 25), bias, rng);
    const auto state = random_state<double>(graph.state_size(), rng);
    SheafGraph<double>::Cache cache;
    graph.forward(state, cache);
    const auto op = sheaf_operator(graph);
    const Eigen::VectorXd x = as_vector(state);
    CHECK(sheaf_energy(op, x) == Approx(cache.total()).epsilon(1e-12).margin(1e-14));
    const SparseMatrix laplacian = sheaf_laplacian(op);
    if (!bias) CHECK(x.dot(laplacian * x) == Approx(cache.total()).epsilon(1e-12).margin(1e-14));
    // Half its gradient is L x + δᵀ W c.
    std::vector<double> dstate(state.size());
    auto grad = zeros_like(graph);
    graph.backward(0.5, cache, dstate, grad);
    const Eigen::VectorXd expected =
        laplacian * x + op.coboundary.transpose() * op.weight.cwiseProduct(op.offset).eval();
    for (Index i = 0; i < x.size(); ++i)
      CHECK(dstate[static_cast<std::size_t>(i)] == Approx(expected(i)).epsilon(1e-10).margin(1e-12));
  }
}

TEST_CASE("the coboundary and its offset give the residuals; L has the blocks of the definition") {
  Rng rng(2);
  const Index dims[] = {3, 2, 4};
  std::vector<RestrictionMap<double>> maps;
  for (const Index dim : dims) maps.push_back(random_restriction<double>(dim, 2, true, rng));
  const SheafGraph<double> graph({3, 2, 4}, maps, {{0, 1, 0, 1, 0.5}, {2, 1, 2, 1, 3}});
  const auto op = sheaf_operator(graph);
  const auto state = random_state<double>(9, rng);
  const Eigen::VectorXd r = op.coboundary * as_vector(state) + op.offset;
  const auto image = [&](Index node) {
    Eigen::RowVectorXd y(2);
    maps[static_cast<std::size_t>(node)].forward(
        ConstMatrixView<double>(state.data() + graph.state_offset(node), 1, graph.dim(node)),
        MatrixView<double>(y.data(), 1, 2));
    return y;
  };
  for (Index d = 0; d < 2; ++d) {
    CHECK(r(d) == Approx(image(0)(d) - image(1)(d)).margin(1e-13));
    CHECK(r(2 + d) == Approx(image(2)(d) - image(1)(d)).margin(1e-13));
  }
  const Matrix<double> a0 = maps[0].matrix(), a1 = maps[1].matrix(), a2 = maps[2].matrix();
  Eigen::MatrixXd expected = Eigen::MatrixXd::Zero(9, 9);
  expected.block(0, 0, 3, 3) = 0.5 * a0.transpose() * a0;
  expected.block(3, 3, 2, 2) = 3.5 * a1.transpose() * a1;
  expected.block(5, 5, 4, 4) = 3 * a2.transpose() * a2;
  expected.block(0, 3, 3, 2) = -0.5 * a0.transpose() * a1;
  expected.block(5, 3, 4, 2) = -3 * a2.transpose() * a1;
  expected.block(3, 0, 2, 3) = expected.block(0, 3, 3, 2).transpose();
  expected.block(3, 5, 2, 4) = expected.block(5, 3, 4, 2).transpose();
  const Eigen::MatrixXd laplacian(sheaf_laplacian(graph));
  CHECK((laplacian - expected).cwiseAbs().maxCoeff() < 1e-13);
}

TEST_CASE("the sheaf of a token set holds the energies of all its pairs") {
  Rng rng(3);
  const Index tokens = 7, dim = 6;
  const auto rho_query = random_restriction<double>(dim, 4, true, rng);
  const auto rho_key = random_restriction<double>(dim, 4, true, rng);
  const auto hidden = random_matrix<double>(tokens, dim, 4);
  Tensor<double, 2> query(tokens, 4), key(tokens, 4), energy(tokens, tokens);
  rho_query.forward(rows(hidden), rows(query));
  rho_key.forward(rows(hidden), rows(key));
  pairwise_energies<double>(rows(std::as_const(query)), rows(std::as_const(key)), rows(energy));

  const auto graph = token_sheaf(tokens, rho_query, rho_key);
  REQUIRE(graph.count_edges() == tokens * (tokens - 1) / 2);
  SheafGraph<double>::Cache cache;
  graph.forward(elements(hidden), cache);
  for (Index e = 0; e < graph.count_edges(); ++e) {
    CHECK(graph.edge(e).v < graph.edge(e).u);
    CHECK(cache.edge(e) == Approx(energy(graph.edge(e).u, graph.edge(e).v)).epsilon(1e-12));
  }
  CHECK(sheaf_energy(sheaf_operator(graph), Eigen::Map<const Eigen::VectorXd>(hidden.data(), hidden.size())) ==
        Approx(cache.total()).epsilon(1e-12));

  const auto window = token_sheaf<double>(tokens, rho_query, rho_key, {{3, 2, 0, 0, 0.5}, {4, 3}});
  window.forward(elements(hidden), cache);
  CHECK(cache.total() == Approx(0.5 * energy(3, 2) + energy(4, 3)).epsilon(1e-12));

  CHECK_THROWS_AS(token_sheaf(0, rho_query, rho_key), Error);
  CHECK_THROWS_AS(token_sheaf(3, rho_query, RestrictionMap<double>::identity(5)), Error);
  CHECK_THROWS_WITH(sheaf_energy(sheaf_operator(graph), Eigen::VectorXd::Zero(3)),
                    ContainsText("size of the states: expected 42, got 3"));
}
