// The second pass of a shape allocates nothing. The one source of this executable that counts; other parts of the floor
// add their cases here.
#include "nn/support.hpp"
#include "rbar/sheaf/sheaf_graph.hpp"
#include "sheaf/random_sheaf.hpp"
#include "support/allocations.hpp"

using namespace rbar;
using namespace rbar::test;

namespace {

template <class Body>
void check_second_pass(Body&& body) {
  body();
  const long count = ::test::allocations_in(body);
  CHECK(count == 0);
}

}  // namespace

TEST_CASE("restriction maps, chains and pairwise energies allocate nothing the second time") {
  Rng rng(1);
  const Index count = 40, dim = 24;
  const auto x = random_matrix<float>(count, dim, 2);
  Tensor<float, 2> y(count, dim), dx(count, dim);
  const auto check = [&](const auto& map) {
    auto grad = zeros_like(map);
    check_second_pass([&] {
      map.forward(rows(x), rows(y));
      map.backward(rows(std::as_const(y)), rows(x), rows(dx), grad);
    });
  };
  std::vector<RestrictionMap<float>> maps;
  for (const RestrictionMapKind kind : all_restriction_map_kinds) {
    INFO(name_of(kind));
    maps.push_back(kind == RestrictionMapKind::csr
                       ? RestrictionMap<float>::csr(dim, std::vector<Index>(dim + 1, 0), {}, true, rng)
                       : RestrictionMap<float>::of_kind(kind, dim, dim, 5, true, rng));
    check(maps.back());
  }
  check(ComposedRestrictionMap<float>(maps));
  Tensor<float, 2> energy(count, count);
  check_second_pass([&] { pairwise_energies<float>(rows(x), rows(x), rows(energy)); });
}

TEST_CASE("a sheaf graph allocates nothing the second time") {
  Rng rng(3);
  const auto graph = random_sheaf<float>(12, 30, true, rng);
  const auto state = random_state<float>(graph.state_size(), rng);
  const std::vector<Index> changed = {3, 7};
  std::vector<float> dstate(state.size());
  auto grad = zeros_like(graph);
  SheafGraph<float>::Cache cache;
  check_second_pass([&] {
    graph.forward(state, cache);
    graph.update(state, changed, cache);
    graph.backward(1, cache, dstate, grad);
  });
}
