// What a model keeps of its layers between forward and backward. Either every layer's cache, of which only the scratch
// is shared, or, to recompute, what goes into each layer and one cache for all layers of a kind:
//   kept        layers · cache
//   recomputed  layers · input + kinds · cache,   for one more forward pass through the layers
// (Chen et al., "Training deep nets with sublinear memory cost", arXiv:1604.06174, with a layer as the segment). The
// gradients are the same to the last bit: a layer is a function of its input, and dropout draws from counters.
#pragma once

#include "rbar/core/error.hpp"

#include <array>
#include <cstddef>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

namespace rbar {

// Exchanges what no pass of a layer leaves to another: a cache says which of its buffers those are in
//   void swap_scratch(const Cache& other) const
// One without that has none, and two different alternatives have nothing in common.
template <class Cache>
void swap_scratch(const Cache& a, const Cache& b) {
  if constexpr (requires { a.swap_scratch(b); }) a.swap_scratch(b);
}
template <class... Caches>
void swap_scratch(const std::variant<Caches...>& a, const std::variant<Caches...>& b) {
  if (a.index() != b.index()) return;
  std::visit([&]<class Cache>(const Cache& cache) { swap_scratch(cache, std::get<Cache>(b)); }, a);
}

// The caches of `Cache`s of layers of at most three kinds; those of one kind have the same buffers. Const like any
// cache in a backward pass, which changes scratch only: here that includes every cache it may compute again.
template <class Cache>
class LayerCaches {
 public:
  // Before the layers of a forward pass.
  void prepare(std::size_t layers, bool recompute, std::size_t kinds = 1) {
    const std::size_t count = recompute ? kinds : layers;
    if (recompute != recompute_ || count != caches_.size()) user_.fill(none);
    recompute_ = recompute;
    caches_.resize(count);
  }

  // The cache that layer `layer` is to fill in the forward pass.
  Cache& fill(std::size_t layer, std::size_t kind = 0) { return turn(layer, kind); }

  // The cache of a layer in the backward pass. Where another layer has used it since, again(cache) fills it.
  template <class Again>
  const Cache& filled(std::size_t layer, std::size_t kind, Again&& again) const {
    const bool lost = recompute_ && user_[kind] != layer;
    Cache& cache = turn(layer, kind);
    if (lost) again(cache);
    return cache;
  }

  // Of every layer, unless the layers are to be recomputed: then of every kind, in the state its last user left.
  std::size_t size() const { return caches_.size(); }
  const Cache& operator[](std::size_t layer) const { return caches_[layer]; }
  Cache& operator[](std::size_t layer) { return caches_[layer]; }
  auto begin() const { return caches_.cbegin(); }
  auto end() const { return caches_.cend(); }
  const Cache& front() const { return caches_.front(); }

 private:
  static constexpr std::size_t none = static_cast<std::size_t>(-1);

  // Scratch goes from layer to layer of a kind, so that there is one of it.
  Cache& turn(std::size_t layer, std::size_t kind) const {
    const std::size_t last = std::exchange(user_[kind], layer);
    if (recompute_) return caches_[kind];
    if (last != none && last != layer) swap_scratch(caches_[last], caches_[layer]);
    return caches_[layer];
  }

  bool recompute_ = false;
  mutable std::vector<Cache> caches_;
  mutable std::array<std::size_t, 3> user_{none, none, none};  // the layer of each kind that had its turn last
};

}  // namespace rbar
