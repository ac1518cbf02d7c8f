// One block of the phase-modulated model on the residual stream h, pre-norm,
//   m = h + dropout(mixer(RMSNorm₁ h)),   h' = m + dropout(SwiGLU(RMSNorm₂ m))   (or h' = m without the second half)
// with a selective state space or phase-modulated attention as the mixer; the latter also takes the state that sets
// its coupling.
#pragma once

#include "rbar/core/bulk.hpp"
#include "rbar/model/layer_caches.hpp"
#include "rbar/nn/dropout.hpp"
#include "rbar/nn/feed_forward.hpp"
#include "rbar/nn/norm.hpp"

#include <utility>

namespace rbar {

// [batch, tokens, d_model] -> the same.
template <class T, class MixerLayer>
struct MixerBlock {
  using Scalar = T;
  using Mixer = MixerLayer;

  struct Cache {
    typename RMSNorm<T>::Cache norm1, norm2;
    typename Mixer::Cache mixer;
    typename SwiGLU<T>::Cache feed_forward;
    Tensor<T, 3> middle, normed;  // m and RMSNorm₂ m

    void swap_scratch(const Cache& other) const {
      rbar::swap_scratch(mixer, other.mixer);
      feed_forward.swap_scratch(other.feed_forward);
    }
  };
  // What the blocks of a model use one after the other.
  struct Scratch {
    Tensor<T, 3> normed, branch;
    typename RMSNorm<T>::Cache norm;
    typename SwiGLU<T>::Cache feed_forward;
  };

  RMSNorm<T> norm1, norm2;
  Mixer mixer;
  SwiGLU<T> feed_forward;
  double dropout_rate = 0;

  MixerBlock() = default;
  // hidden = 0: no second half.
  MixerBlock(Mixer mixer_, Index dim, Index hidden, double norm_eps, double dropout, Rng& rng)
      : norm1(dim, norm_eps), mixer(std::move(mixer_)), dropout_rate(dropout) {
    if (hidden == 0) return;
    norm2 = RMSNorm<T>(dim, norm_eps);
    feed_forward = SwiGLU<T>(dim, hidden, /*bias=*/false, rng);
  }

  bool has_feed_forward() const { return feed_forward.up.out() > 0; }

  // The two branches draw from the dropout streams `stream` and `stream + 1`. What the mixer takes beside h: `more`.
  template <class... More>
  void forward(ConstTensorView<T, 3> h, const DropoutState& dropout, std::uint64_t stream, Tensor<T, 3>& out,
               Cache& cache, Scratch& scratch, const More&... more) const {
    ensure_shape(out, shape_of(h));
    to_feed_forward(h, dropout, stream, cache, scratch, more...);
    if (!has_feed_forward()) return add(dropout, stream, h, scratch, out);
    feed_forward.forward(rows(std::as_const(cache.normed)), rows(scratch.branch), cache.feed_forward);
    add(dropout, stream + 1, view(std::as_const(cache.middle)), scratch, out);
  }

  // The cache that forward leaves, without its output.
  template <class... More>
  void fill(ConstTensorView<T, 3> h, const DropoutState& dropout, std::uint64_t stream, Cache& cache, Scratch& scratch,
            const More&... more) const {
    to_feed_forward(h, dropout, stream, cache, scratch, more...);
    if (has_feed_forward()) feed_forward.fill(rows(std::as_const(cache.normed)), cache.feed_forward);
  }

  // dh: on entry the gradient of the output, on return that of h. dmore: gradients of `more`, overwritten.
  template <class... More>
  void backward(ConstTensorView<T, 3> h, const DropoutState& dropout, std::uint64_t stream, const Cache& cache,
                Tensor<T, 3>& dh, Scratch& scratch, MixerBlock& grad, More&... dmore) const {
    ensure_shape(scratch.normed, shape_of(h));
    ensure_shape(scratch.branch, shape_of(h));
    if (has_feed_forward()) {
      feed_forward.backward(rows(branch_gradient(dropout, stream + 1, dh, scratch)), rows(cache.normed),
                            cache.feed_forward, rows(scratch.normed), grad.feed_forward);
      norm2.backward(rows(std::as_const(scratch.normed)), rows(cache.middle), cache.norm2, rows(dh), grad.norm2,
                     /*accumulate_dx=*/true);
    }
    mixer.backward(branch_gradient(dropout, stream, dh, scratch), cache.mixer, scratch.normed, dmore..., grad.mixer);
    norm1.backward(rows(std::as_const(scratch.normed)), rows(h), cache.norm1, rows(dh), grad.norm1,
                   /*accumulate_dx=*/true);
  }

  // The next tokens, in place.
  template <class... More>
  void step(Tensor<T, 3>& h, typename Mixer::State& state, Scratch& scratch, const More&... more) const {
    ensure_shape(scratch.normed, shape_of(h));
    norm1.forward(rows(std::as_const(h)), rows(scratch.normed), scratch.norm);
    mixer.step(view(std::as_const(scratch.normed)), more..., scratch.branch, state);
    add({}, 0, view(std::as_const(h)), scratch, h);
    if (!has_feed_forward()) return;
    norm2.forward(rows(std::as_const(h)), rows(scratch.normed), scratch.norm);
    feed_forward.forward(rows(std::as_const(scratch.normed)), rows(scratch.branch), scratch.feed_forward);
    add({}, 0, view(std::as_const(h)), scratch, h);
  }

  void parameters(auto&& visit) {
    visit_layer(visit, "norm1", norm1);
    visit_layer(visit, "mixer", mixer);
    if (!has_feed_forward()) return;
    visit_layer(visit, "norm2", norm2);
    visit_layer(visit, "feed_forward", feed_forward);
  }
  void linears(auto&& visit) {
    mixer.linears(visit);
    if (has_feed_forward()) feed_forward.linears(visit);
  }

 private:
  template <class... More>
  void to_feed_forward(ConstTensorView<T, 3> h, const DropoutState& dropout, std::uint64_t stream, Cache& cache,
                       Scratch& scratch, const More&... more) const {
    ensure_shape(scratch.normed, shape_of(h));
    ensure_shape(scratch.branch, shape_of(h));
    norm1.forward(rows(h), rows(scratch.normed), cache.norm1);
    mixer.forward(view(std::as_const(scratch.normed)), more..., scratch.branch, cache.mixer);
    if (!has_feed_forward()) return;
    ensure_shape(cache.middle, shape_of(h));
    ensure_shape(cache.normed, shape_of(h));
    add(dropout, stream, h, scratch, cache.middle);
    norm2.forward(rows(std::as_const(cache.middle)), rows(cache.normed), cache.norm2);
  }

  void add(const DropoutState& dropout, std::uint64_t stream, ConstTensorView<T, 3> h, const Scratch& scratch,
           Tensor<T, 3>& out) const {
    add_with_dropout<T>(dropout_rate, dropout, stream, rows(h), rows(scratch.branch), rows(out));
  }
  // dh through the branch's mask; dh itself where nothing was dropped.
  ConstTensorView<T, 3> branch_gradient(const DropoutState& dropout_state, std::uint64_t stream, const Tensor<T, 3>& dh,
                                        Scratch& scratch) const {
    if (!dropout_state.active || dropout_rate == 0) return view(dh);
    bulk_copy(dh.data(), dh.size(), scratch.branch.data());
    dropout<T>(dropout_rate, dropout_state, stream, rows(scratch.branch));
    return view(std::as_const(scratch.branch));
  }
};

}  // namespace rbar
