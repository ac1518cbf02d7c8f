// A cellular sheaf on a graph: nodes u with states x_u ∈ R^{d_u}, edges e = (u, v) with restriction maps ρ_u, ρ_v into
// a common space and a weight w_e >= 0 (Hansen, Ghrist, "Toward a spectral theory of cellular sheaves", 2019; ADR-014):
//   r_e = ρ_u(x_u) − ρ_v(x_v),   E_e = w_e ‖r_e‖²,   E_u = Σ_{e ∋ u} E_e,   E = Σ_e E_e.
// When a few states change, only their images and the edges at them are computed again, and the bits are those of a
// full computation.
#pragma once

#include "rbar/sheaf/incidence.hpp"
#include "rbar/sheaf/residual.hpp"
#include "rbar/sheaf/restriction_map.hpp"
#include "rbar/sheaf/sum_tree.hpp"

#include <span>
#include <string>
#include <utility>
#include <vector>

namespace rbar {

// The structure is fixed once made; maps and weights are trained. States are one flat list (a 0-cochain) [state_size],
// node u at state_offset(u). Errors: those of SheafIncidence, states of another size, states or energies that are not
// finite.
template <class T>
struct SheafGraph {
  using Scalar = T;

  std::vector<RestrictionMap<T>> maps;
  Tensor<T, 1> weight;  // w [edges]

  // Energies, and what an update and the backward pass need. One object for one list of states.
  struct Cache {
    Tensor<double, 1> edge;   // E_e [edges]
    Tensor<double, 1> token;  // E_u [nodes]
    double total() const { return sum.total(); }

    SumTree sum;                   // of edge
    Tensor<double, 1> square;      // ‖r_e‖² [edges]
    Tensor<T, 1> inputs, outputs;  // x_u and ρ(x_u) of every image
    std::vector<Index> touched;    // scratch of `update`: edges, then nodes
    std::vector<char> is_touched;  // [max(edges, nodes)], 0 between calls
    mutable Tensor<T, 1> dinputs, doutputs;
  };

  SheafGraph() = default;
  SheafGraph(std::vector<Index> node_dims, std::vector<RestrictionMap<T>> maps_, std::vector<SheafEdge> edges)
      : maps(std::move(maps_)), weight(static_cast<Index>(edges.size())), edges_(std::move(edges)) {
    std::vector<std::array<Index, 2>> map_dims;
    for (const auto& map : maps) map_dims.push_back({map.in(), map.out()});
    incidence_ = SheafIncidence(std::move(node_dims), map_dims, edges_);
    for (Index e = 0; e < count_edges(); ++e) weight(e) = static_cast<T>(edge(e).weight);
  }

  Index count_nodes() const { return static_cast<Index>(incidence_.node_dims.size()); }
  Index count_edges() const { return static_cast<Index>(edges_.size()); }
  Index state_size() const { return count_nodes() > 0 ? incidence_.state_offsets.back() : 0; }
  Index state_offset(Index node) const { return incidence_.state_offsets.data()[node]; }
  Index dim(Index node) const { return incidence_.node_dims.data()[node]; }
  std::span<const Index> edges_at(Index node) const { return incidence_.node_edges[node]; }
  // Ends and maps; the weight in force is weight(e).
  const SheafEdge& edge(Index e) const { return edges_.data()[e]; }

  void parameters(auto&& visit) {
    for (std::size_t m = 0; m < maps.size(); ++m) visit_layer(visit, "maps." + std::to_string(m), maps[m]);
    visit("weight", weight);
  }

  // Every energy, from scratch.
  void forward(std::span<const T> state, Cache& cache) const {
    require_state("SheafGraph::forward", state);
    require_finite("SheafGraph::forward", "state", state);
    allocate(cache);
    for (const Image& image : incidence_.images) copy_input(image, state, cache);
    for (std::size_t m = 0; m < maps.size(); ++m)
      for_rows_of_map(m, [&](Index input, Index output, Index count) {
        maps[m].forward(ConstMatrixView<T>(cache.inputs.data() + input, count, maps[m].in()),
                        MatrixView<T>(cache.outputs.data() + output, count, maps[m].out()));
      });
    parallel_for(count_edges(), 64, [&](Index begin, Index end) {
      for (Index e = begin; e < end; ++e) measure_edge(e, cache);
    });
    for (Index e = 0; e < count_edges(); ++e) cache.sum.leaf(e) = cache.edge(e);
    cache.sum.rebuild();
    for (Index u = 0; u < count_nodes(); ++u) measure_token(u, cache);
    require_energy("SheafGraph::forward", cache);
  }

  // The same after the states of the `changed` nodes were replaced, maps and weights as they were: `cache` comes from
  // `forward`. Returns how many edges were computed again.
  Index update(std::span<const T> state, std::span<const Index> changed, Cache& cache) const {
    constexpr const char* where = "SheafGraph::update";
    require_state(where, state);
    require_shape(where, "cache", shape_of(cache.edge), Shape<1>{count_edges()});
    require_shape(where, "cache", shape_of(cache.inputs), Shape<1>{incidence_.input_size});
    for (const Index u : changed) {
      require(u >= 0 && u < count_nodes(), where, "changed", "numbers of nodes", u);
      require_finite(where, "state", part(state, u));
    }
    for (const Index u : changed)
      for (const Index i : incidence_.node_images[u]) {
        const Image& image = incidence_.images.data()[i];
        const auto& map = maps.data()[image.map];
        copy_input(image, state, cache);
        map.forward(ConstMatrixView<T>(cache.inputs.data() + image.input, 1, map.in()),
                    MatrixView<T>(cache.outputs.data() + image.output, 1, map.out()));
      }

    for (const Index u : changed)
      for (const Index e : edges_at(u)) touch(e, cache);
    release(cache);
    const auto recomputed = static_cast<Index>(cache.touched.size());
    for (const Index e : cache.touched) {
      measure_edge(e, cache);
      cache.sum.set(e, cache.edge(e));
    }

    cache.touched.clear();
    for (const Index u : changed)
      for (const Index e : edges_at(u)) {
        touch(edge(e).u, cache);
        touch(edge(e).v, cache);
      }
    release(cache);
    for (const Index u : cache.touched) measure_token(u, cache);
    cache.touched.clear();
    require_energy(where, cache);
    return recomputed;
  }

  // Of denergy · E: dstate [state_size] is overwritten, the gradients of maps and weights accumulate.
  //   ∂E/∂ρ_u(x_u) = 2 w r,   ∂E/∂ρ_v(x_v) = −2 w r,   ∂E/∂w = ‖r‖².
  void backward(double denergy, const Cache& cache, std::span<T> dstate, SheafGraph& grad) const {
    require_state("SheafGraph::backward", std::span<const T>(dstate));
    require_shape("SheafGraph::backward", "gradient of weight", grad.weight, {count_edges()});
    require(grad.maps.size() == maps.size(), "SheafGraph::backward", "maps of the gradient", maps.size(),
            grad.maps.size());
    ensure_shape(cache.dinputs, shape_of(cache.inputs));
    ensure_shape(cache.doutputs, shape_of(cache.outputs));
    cache.doutputs.setZero();
    for (Index e = 0; e < count_edges(); ++e) {
      grad.weight(e) += static_cast<T>(denergy * cache.square(e));
      const auto [u, v] = outputs_of(e);
      const T scale = static_cast<T>(2 * denergy) * weight(e);
      for (Index d = 0; d < edge_dim(e); ++d) {
        const T gradient = scale * (cache.outputs(u + d) - cache.outputs(v + d));
        cache.doutputs(u + d) += gradient;
        cache.doutputs(v + d) -= gradient;
      }
    }
    for (std::size_t m = 0; m < maps.size(); ++m)
      for_rows_of_map(m, [&](Index input, Index output, Index count) {
        maps[m].backward(ConstMatrixView<T>(cache.doutputs.data() + output, count, maps[m].out()),
                         ConstMatrixView<T>(cache.inputs.data() + input, count, maps[m].in()),
                         MatrixView<T>(cache.dinputs.data() + input, count, maps[m].in()), grad.maps[m]);
      });
    std::fill(dstate.begin(), dstate.end(), T(0));
    for (const Image& image : incidence_.images)
      for (Index d = 0; d < dim(image.node); ++d)
        dstate.data()[state_offset(image.node) + d] += cache.dinputs(image.input + d);
  }

 private:
  using Image = SheafIncidence::Image;

  std::vector<SheafEdge> edges_;
  SheafIncidence incidence_;

  Index edge_dim(Index e) const { return maps.data()[edge(e).rho_u].out(); }
  // Where ρ_u(x_u) and ρ_v(x_v) begin.
  std::array<Index, 2> outputs_of(Index e) const {
    const auto [u, v] = incidence_.edge_images.data()[e];
    return {incidence_.images.data()[u].output, incidence_.images.data()[v].output};
  }
  std::span<const T> part(std::span<const T> state, Index node) const {
    return {state.data() + state_offset(node), static_cast<std::size_t>(dim(node))};
  }

  // body(first input, first output, number of images), where there are any.
  template <class Body>
  void for_rows_of_map(std::size_t map, Body&& body) const {
    const Index first = incidence_.map_first[map], count = incidence_.map_first[map + 1] - first;
    if (count == 0) return;
    const Image& image = incidence_.images.data()[first];
    body(image.input, image.output, count);
  }

  void allocate(Cache& cache) const {
    ensure_shape(cache.edge, {count_edges()});
    ensure_shape(cache.square, {count_edges()});
    ensure_shape(cache.token, {count_nodes()});
    ensure_shape(cache.inputs, {incidence_.input_size});
    ensure_shape(cache.outputs, {incidence_.output_size});
    cache.sum.resize(count_edges());
    const auto most = static_cast<std::size_t>(std::max(count_edges(), count_nodes()));
    cache.touched.reserve(most);
    cache.touched.clear();
    cache.is_touched.assign(most, 0);
  }

  void copy_input(const Image& image, std::span<const T> state, Cache& cache) const {
    const auto x = part(state, image.node);
    std::copy(x.begin(), x.end(), cache.inputs.data() + image.input);
  }
  void measure_edge(Index e, Cache& cache) const {
    const auto [u, v] = outputs_of(e);
    cache.square(e) = simd::residual_energy(cache.outputs.data() + u, cache.outputs.data() + v, edge_dim(e));
    cache.edge(e) = static_cast<double>(weight(e)) * cache.square(e);
  }
  void measure_token(Index node, Cache& cache) const {
    double sum = 0;
    for (const Index e : edges_at(node)) sum += cache.edge(e);
    cache.token(node) = sum;
  }

  // Lists every number once; `release` takes the marks back.
  static void touch(Index i, Cache& cache) {
    char& mark = cache.is_touched.data()[i];
    if (mark) return;
    mark = 1;
    cache.touched.push_back(i);
  }
  static void release(Cache& cache) {
    for (const Index i : cache.touched) cache.is_touched.data()[i] = 0;
  }

  void require_state(const char* where, std::span<const T> state) const {
    require(static_cast<Index>(state.size()) == state_size(), where, "size of the states", state_size(), state.size());
  }
  static void require_energy(const char* where, const Cache& cache) {
    require(std::isfinite(cache.total()), where, "energy", "a finite number", cache.total());
  }
};

}  // namespace rbar
