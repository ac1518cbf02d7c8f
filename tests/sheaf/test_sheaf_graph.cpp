#include "nn/support.hpp"
#include "rbar/sheaf/sheaf_graph.hpp"
#include "sheaf/random_sheaf.hpp"

#include <limits>
#include <set>

using namespace rbar;
using namespace rbar::test;

namespace {

using Graph = SheafGraph<double>;
using Map = RestrictionMap<double>;

// r of one edge by A x + b, element by element.
std::vector<double> textbook_residual(const Graph& graph, const std::vector<double>& state, Index e) {
  const SheafEdge& edge = graph.edge(e);
  const auto image = [&](Index node, Index map, Index d) {
    const Map& rho = graph.maps[static_cast<std::size_t>(map)];
    const Matrix<double> a = rho.matrix();
    double sum = rho.bias.size() > 0 ? rho.bias(d) : 0;
    for (Index i = 0; i < rho.in(); ++i) sum += a(d, i) * state[static_cast<std::size_t>(graph.state_offset(node) + i)];
    return sum;
  };
  std::vector<double> r;
  for (Index d = 0; d < graph.maps[static_cast<std::size_t>(edge.rho_u)].out(); ++d)
    r.push_back(image(edge.u, edge.rho_u, d) - image(edge.v, edge.rho_v, d));
  return r;
}

// Bits of everything that an energy pass reports.
template <class Cache>
std::vector<double> energies_of(const Cache& cache) {
  std::vector<double> all(cache.edge.data(), cache.edge.data() + cache.edge.size());
  all.insert(all.end(), cache.token.data(), cache.token.data() + cache.token.size());
  all.push_back(cache.total());
  return all;
}

}  // namespace

TEST_CASE("chain (1,0), (.5,0), (0,0) has the energy .5; orthonormal states differ by 2") {
  Graph::Cache cache;
  const Graph chain({2, 2, 2}, {Map::identity(2)}, {{0, 1}, {1, 2}});
  chain.forward(std::vector<double>{1, 0, .5, 0, 0, 0}, cache);
  CHECK(cache.total() == 0.5);
  CHECK(cache.edge(0) == 0.25);
  CHECK(cache.token(1) == 0.5);
  CHECK(cache.token(2) == 0.25);

  const Graph triangle({3, 3, 3}, {Map::identity(3)}, {{0, 1}, {1, 2}, {2, 0}});
  triangle.forward(std::vector<double>{1, 0, 0, 0, 1, 0, 0, 0, 1}, cache);
  for (Index e = 0; e < 3; ++e) CHECK(cache.edge(e) == 2);
}

TEST_CASE("energies are those of the definition, not negative, linear in w and blind to an edge's direction") {
  Rng rng(1);
  for (int repeat = 0; repeat < 60; ++repeat) {
    INFO("repeat " << repeat);
    const Index nodes = 1 + random_below(rng, 8);
    Graph graph = random_sheaf<double>(nodes, random_below(rng, 20), repeat % 2 == 0, rng);
    const auto state = random_state<double>(graph.state_size(), rng);
    Graph::Cache cache;
    graph.forward(state, cache);
    double total = 0;
    std::vector<double> token(static_cast<std::size_t>(nodes), 0.0);
    std::vector<SheafEdge> turned;
    for (Index e = 0; e < graph.count_edges(); ++e) {
      const SheafEdge& edge = graph.edge(e);
      double energy = 0;
      for (const double r : textbook_residual(graph, state, e)) energy += edge.weight * r * r;
      CHECK(cache.edge(e) == Approx(energy).epsilon(1e-12).margin(1e-14));
      CHECK(cache.edge(e) >= 0);
      total += energy;
      token[static_cast<std::size_t>(edge.u)] += energy;
      token[static_cast<std::size_t>(edge.v)] += energy;
      turned.push_back({edge.v, edge.u, edge.rho_v, edge.rho_u, edge.weight});
    }
    CHECK(cache.total() == Approx(total).epsilon(1e-12).margin(1e-14));
    for (Index u = 0; u < nodes; ++u)
      CHECK(cache.token(u) == Approx(token[static_cast<std::size_t>(u)]).epsilon(1e-12).margin(1e-14));

    std::vector<Index> dims;
    for (Index u = 0; u < nodes; ++u) dims.push_back(graph.dim(u));
    Graph::Cache other;
    Graph(dims, graph.maps, turned).forward(state, other);
    CHECK(other.total() == cache.total());
    for (double& w : elements(graph.weight)) w *= 4;
    graph.forward(state, other);
    CHECK(other.total() == 4 * cache.total());
  }
}

TEST_CASE("an update has the bits of a full computation and touches the edges at changed nodes only") {
  Rng rng(2);
  const auto property = [&]<class T>(T, int graphs, int updates) {
    for (int g = 0; g < graphs; ++g) {
      const auto graph = random_sheaf<T>(2 + random_below(rng, 12), 1 + random_below(rng, 40), true, rng);
      auto state = random_state<T>(graph.state_size(), rng);
      typename SheafGraph<T>::Cache cache, full;
      graph.forward(state, cache);
      for (int i = 0; i < updates; ++i) {
        INFO("graph " << g << ", update " << i);
        std::vector<Index> changed;
        for (Index n = random_below(rng, 4); n > 0; --n) changed.push_back(random_below(rng, graph.count_nodes()));
        std::set<Index> edges;
        for (const Index u : changed) {
          for (Index d = 0; d < graph.dim(u); ++d)
            state[static_cast<std::size_t>(graph.state_offset(u) + d)] = static_cast<T>(rng.normal());
          edges.insert(graph.edges_at(u).begin(), graph.edges_at(u).end());
        }
        const Index recomputed = graph.update(state, changed, cache);
        graph.forward(state, full);
        const bool same = recomputed == static_cast<Index>(edges.size()) && energies_of(cache) == energies_of(full);
        if (!same) CHECK(recomputed == static_cast<Index>(edges.size()));
        REQUIRE(same);
      }
    }
  };
  property(0.0f, 60, 10);
  property(0.0, 60, 10);
}

TEST_CASE("sheaf graph: gradients of states, maps and weights") {
  Rng rng(3);
  for (int repeat = 0; repeat < 8; ++repeat) {
    INFO("repeat " << repeat);
    Graph graph = random_sheaf<double>(5, 9, repeat % 2 == 0, rng);
    auto state = random_state<double>(graph.state_size(), rng);
    std::vector<double> dstate(state.size(), 1e30);
    Graph::Cache cache;
    graph.forward(state, cache);
    Graph grad = zeros_like(graph);
    graph.backward(0.7, cache, dstate, grad);
    std::vector<GradientPair> pairs;
    const auto values = parameters_of(graph), gradients = parameters_of(grad);
    for (std::size_t i = 0; i < values.size(); ++i)
      pairs.push_back({values[i].name, values[i].values(), gradients[i].values()});
    pairs.push_back({"state", state, dstate});
    const auto report = gradient_check(std::span<const GradientPair>(pairs), [&] {
      graph.forward(state, cache);
      return 0.7 * cache.total();
    });
    INFO(report.worst);
    CHECK(report.error < 1e-6);
    CHECK(report.largest_gradient > 0.1);

    graph.forward(state, cache);
    Graph twice = grad;
    graph.backward(0.7, cache, dstate, twice);  // accumulates
    const auto doubled = parameters_of(twice);
    for (std::size_t p = 0; p < doubled.size(); ++p)
      for (Index i = 0; i < doubled[p].size; ++i)
        CHECK(doubled[p].data[i] == Approx(2 * gradients[p].data[i]).margin(1e-12));
  }
}

TEST_CASE("sheaf graph: the same bits on 1, 2 and 5 threads") {
  Rng rng(4);
  const auto graph = random_sheaf<float>(40, 500, true, rng);
  const auto state = random_state<float>(graph.state_size(), rng);
  std::vector<double> first;
  for (const int threads : {1, 2, 5}) {
    set_num_threads(threads);
    SheafGraph<float>::Cache cache;
    graph.forward(state, cache);
    auto all = energies_of(cache);
    auto grad = zeros_like(graph);
    std::vector<float> dstate(state.size());
    graph.backward(1, cache, dstate, grad);
    all.insert(all.end(), dstate.begin(), dstate.end());
    for (const auto& p : parameters_of(grad)) all.insert(all.end(), p.data, p.data + p.size);
    if (first.empty()) first = all;
    CHECK(all == first);
  }
  set_num_threads(1);
}

TEST_CASE("sheaf graph refuses what does not fit, and states that are not finite") {
  const auto build = [](std::vector<Index> dims, std::vector<Map> maps, std::vector<SheafEdge> edges) {
    return Graph(std::move(dims), std::move(maps), std::move(edges));
  };
  const Map two = Map::identity(2), three = Map::identity(3);
  CHECK_THROWS_WITH(build({2, 0}, {two}, {}), "SheafGraph: dimension of a node: expected at least 1, got 0");
  CHECK_THROWS_WITH(build({2, 2}, {two}, {{0, 2}}), ContainsText("node of an edge"));
  CHECK_THROWS_WITH(build({2, 2}, {two}, {{-1, 1}}), ContainsText("node of an edge"));
  CHECK_THROWS_WITH(build({2, 2}, {two}, {{0, 1, 0, 1}}), ContainsText("map of an edge"));
  CHECK_THROWS_WITH(build({2, 3}, {two}, {{0, 1}}), ContainsText("in of an edge's map: expected 3, got 2"));
  CHECK_THROWS_WITH(build({2, 3}, {two, three}, {{0, 1, 0, 1}}), ContainsText("out of rho_v: expected 2, got 3"));
  CHECK_THROWS_WITH(build({2, 2}, {two}, {{1, 1}}), ContainsText("loop"));
  CHECK_THROWS_WITH(build({2, 2}, {two}, {{0, 1, 0, 0, -1}}), ContainsText("weight of an edge"));
  const double nan = std::numeric_limits<double>::quiet_NaN();
  CHECK_THROWS_WITH(build({2, 2}, {two}, {{0, 1, 0, 0, nan}}), ContainsText("weight of an edge"));

  const Graph graph({2, 2, 2}, {two}, {{0, 1}, {1, 2}});
  Graph::Cache cache;
  const std::vector<Index> one = {1}, none = {3};
  std::vector<double> state(6, 1.0), dstate(5);
  CHECK_THROWS_AS(graph.update(state, one, cache), Error);  // no forward yet
  graph.forward(state, cache);
  CHECK_THROWS_WITH(graph.forward(std::vector<double>(5), cache),
                    ContainsText("size of the states: expected 6, got 5"));
  CHECK_THROWS_AS(graph.update(state, none, cache), Error);
  Graph grad = zeros_like(graph);
  CHECK_THROWS_AS(graph.backward(1, cache, dstate, grad), Error);
  dstate.resize(6);
  grad.maps.clear();
  CHECK_THROWS_WITH(graph.backward(1, cache, dstate, grad), ContainsText("maps of the gradient: expected 1, got 0"));
  state[3] = nan;
  CHECK_THROWS_WITH(graph.forward(state, cache), ContainsText("expected finite values, got nan at element 3"));
  CHECK_THROWS_WITH(graph.update(state, one, cache), ContainsText("SheafGraph::update: state"));
  state[3] = 1e200;  // finite, its energy is not
  CHECK_THROWS_WITH(graph.forward(state, cache), ContainsText("energy: expected a finite number, got inf"));
}
