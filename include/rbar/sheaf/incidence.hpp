// Who touches what in a sheaf graph: edges at a node, and its images. An image is a node seen through one map; an edge
// compares two of them, and edges that share node and map share the image.
#pragma once

#include "rbar/core/tensor.hpp"

#include <algorithm>
#include <array>
#include <span>
#include <utility>
#include <vector>

namespace rbar {

// Maps are named by their place in the graph's list: edges may share them.
struct SheafEdge {
  Index u = 0, v = 0;
  Index rho_u = 0, rho_v = 0;
  double weight = 1;
};

// A list of lists.
struct RaggedList {
  std::vector<Index> items;
  std::vector<Index> first;  // [lists + 1]

  // visit_pairs(add) calls add(list, item) for every entry; a list keeps the order of its calls. It runs twice, first
  // to count.
  template <class Visit>
  RaggedList(Index lists, Visit&& visit_pairs) : first(static_cast<std::size_t>(lists) + 1, 0) {
    visit_pairs([&](Index list, Index) { ++first[static_cast<std::size_t>(list) + 1]; });
    for (std::size_t l = 1; l < first.size(); ++l) first[l] += first[l - 1];
    items.resize(static_cast<std::size_t>(first.back()));
    std::vector<Index> next(first);
    visit_pairs([&](Index list, Index item) {
      items[static_cast<std::size_t>(next[static_cast<std::size_t>(list)]++)] = item;
    });
  }
  RaggedList() = default;

  std::span<const Index> operator[](Index list) const {
    const Index* bounds = first.data() + list;
    return {items.data() + bounds[0], static_cast<std::size_t>(bounds[1] - bounds[0])};
  }
};

struct SheafIncidence {
  struct Image {
    Index node = 0, map = 0;
    Index input = 0, output = 0;  // where x_u and ρ(x_u) lie among those of all images
  };

  std::vector<Index> node_dims;
  std::vector<Index> state_offsets;               // [nodes + 1]
  std::vector<Image> images;                      // ordered by map, then by node
  std::vector<Index> map_first;                   // [maps + 1] into images
  std::vector<std::array<Index, 2>> edge_images;  // [edges] of u and v
  RaggedList node_edges, node_images;             // [nodes], ascending
  Index input_size = 0, output_size = 0;          // over all images

  SheafIncidence() = default;

  // map_dims: in and out of every map. Errors: a number out of range, a map of another width than its node's state,
  // maps of an edge that lead to spaces of different size, a loop.
  SheafIncidence(std::vector<Index> dims, const std::vector<std::array<Index, 2>>& map_dims,
                 const std::vector<SheafEdge>& edges)
      : node_dims(std::move(dims)) {
    require_edges(map_dims, edges);
    state_offsets.assign(1, 0);
    for (const Index dim : node_dims) state_offsets.push_back(state_offsets.back() + dim);
    list_images(map_dims, edges);
    const auto nodes = static_cast<Index>(node_dims.size());
    node_edges = RaggedList(nodes, [&](auto&& add) {
      for (std::size_t e = 0; e < edges.size(); ++e) {
        add(edges[e].u, static_cast<Index>(e));
        add(edges[e].v, static_cast<Index>(e));
      }
    });
    node_images = RaggedList(nodes, [&](auto&& add) {
      for (std::size_t i = 0; i < images.size(); ++i) add(images[i].node, static_cast<Index>(i));
    });
  }

 private:
  void require_edges(const std::vector<std::array<Index, 2>>& map_dims, const std::vector<SheafEdge>& edges) const {
    constexpr const char* where = "SheafGraph";
    for (const Index dim : node_dims) require(dim > 0, where, "dimension of a node", "at least 1", dim);
    const auto inside = [](Index i, const auto& list) { return i >= 0 && i < static_cast<Index>(list.size()); };
    const auto require_end = [&](Index node, Index map) {
      require(inside(node, node_dims), where, "node of an edge", "a number below the number of nodes", node);
      require(inside(map, map_dims), where, "map of an edge", "a number below the number of maps", map);
      const Index in = map_dims[static_cast<std::size_t>(map)][0], dim = node_dims[static_cast<std::size_t>(node)];
      require(in == dim, where, "in of an edge's map", dim, in);
    };
    for (const SheafEdge& edge : edges) {
      require_end(edge.u, edge.rho_u);
      require_end(edge.v, edge.rho_v);
      require(edge.u != edge.v, where, "edge", "two nodes", "a loop");
      const Index out_u = map_dims[static_cast<std::size_t>(edge.rho_u)][1];
      const Index out_v = map_dims[static_cast<std::size_t>(edge.rho_v)][1];
      require(out_u == out_v, where, "out of rho_v", out_u, out_v);
      require(edge.weight >= 0 && edge.weight - edge.weight == 0, where, "weight of an edge", "finite, at least 0",
              edge.weight);
    }
  }

  void list_images(const std::vector<std::array<Index, 2>>& map_dims, const std::vector<SheafEdge>& edges) {
    using Key = std::pair<Index, Index>;  // map, node
    std::vector<Key> keys;
    for (const SheafEdge& edge : edges) {
      keys.push_back({edge.rho_u, edge.u});
      keys.push_back({edge.rho_v, edge.v});
    }
    std::sort(keys.begin(), keys.end());
    keys.erase(std::unique(keys.begin(), keys.end()), keys.end());
    map_first.assign(map_dims.size() + 1, 0);
    for (const auto& [map, node] : keys) {
      images.push_back({node, map, input_size, output_size});
      input_size += map_dims[static_cast<std::size_t>(map)][0];
      output_size += map_dims[static_cast<std::size_t>(map)][1];
      ++map_first[static_cast<std::size_t>(map) + 1];
    }
    for (std::size_t m = 1; m < map_first.size(); ++m) map_first[m] += map_first[m - 1];
    const auto image_of = [&](Index map, Index node) {
      return static_cast<Index>(std::lower_bound(keys.begin(), keys.end(), Key{map, node}) - keys.begin());
    };
    for (const SheafEdge& edge : edges)
      edge_images.push_back({image_of(edge.rho_u, edge.u), image_of(edge.rho_v, edge.v)});
  }
};

}  // namespace rbar
