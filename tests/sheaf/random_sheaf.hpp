// Random sheaf graphs: nodes of different dimensions, every kind of map, shared maps, several edges between two nodes.
#pragma once

#include "rbar/sheaf/sheaf_graph.hpp"

#include <algorithm>
#include <vector>

namespace rbar::test {

inline Index random_below(Rng& rng, Index bound) {
  return static_cast<Index>(rng.below(static_cast<std::uint64_t>(bound)));
}

template <class T>
RestrictionMap<T> random_restriction(Index in, Index out, bool bias, Rng& rng) {
  const Index choice = random_below(rng, 6);
  auto map = choice == 0 && in == out   ? RestrictionMap<T>::identity(in, bias)
             : choice == 1 && in == out ? RestrictionMap<T>::diagonal(in, bias, rng)
             : choice == 2 && in >= out
                 ? RestrictionMap<T>::of_kind(RestrictionMapKind::projection, in, out, 0, bias, rng)
             : choice == 3 ? RestrictionMap<T>::low_rank(in, out, 1, bias, rng)
             : choice == 4
                 ? RestrictionMap<T>::csr(in, std::vector<Index>(static_cast<std::size_t>(out) + 1, 0), {}, bias, rng)
                 : RestrictionMap<T>::dense(in, out, bias, rng);
  for (T& value : elements(map.bias)) value = static_cast<T>(rng.normal());
  return map;
}

// Nodes of 1 to 4 dimensions, edges into spaces of 1 to 5.
template <class T>
SheafGraph<T> random_sheaf(Index nodes, Index edge_count, bool bias, Rng& rng) {
  std::vector<Index> dims;
  for (Index u = 0; u < nodes; ++u) dims.push_back(1 + random_below(rng, 4));
  std::vector<RestrictionMap<T>> maps;
  // An earlier map of these sizes with probability 1/2, where there is one.
  const auto map_between = [&](Index in, Index out) {
    for (std::size_t m = 0; m < maps.size(); ++m)
      if (maps[m].in() == in && maps[m].out() == out && rng.below(2) == 0) return static_cast<Index>(m);
    maps.push_back(random_restriction<T>(in, out, bias, rng));
    return static_cast<Index>(maps.size()) - 1;
  };
  std::vector<SheafEdge> edges;
  while (nodes > 1 && static_cast<Index>(edges.size()) < edge_count) {
    SheafEdge edge;
    edge.u = random_below(rng, nodes);
    edge.v = (edge.u + 1 + random_below(rng, nodes - 1)) % nodes;
    const Index out = 1 + random_below(rng, 5);
    edge.rho_u = map_between(dims[static_cast<std::size_t>(edge.u)], out);
    edge.rho_v = map_between(dims[static_cast<std::size_t>(edge.v)], out);
    edge.weight = rng.below(8) == 0 ? 0 : rng.uniform(0.1, 2);
    edges.push_back(edge);
  }
  return SheafGraph<T>(std::move(dims), std::move(maps), std::move(edges));
}

template <class T>
std::vector<T> random_state(Index size, Rng& rng) {
  std::vector<T> state(static_cast<std::size_t>(size));
  for (T& value : state) value = static_cast<T>(rng.normal());
  return state;
}

}  // namespace rbar::test
