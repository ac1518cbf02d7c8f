// Kuramoto dynamics along a sequence: every position of a sequence carries a copy of each oscillator (head h, number
// n), and the copies pull at each other,
//   dθ_t/ds = ω_hn + K_h·mean_j sin(θ_j − θ_t),   n_steps times by dt,   θ wrapped to [−π, π],
// where j runs over the positions up to t (default) or over all of them. The mean field turns the sum over pairs into
// two running sums, so that a step is O(tokens): mean_j sin(θ_j − θ_t) = S·cos θ_t − C·sin θ_t.
// Source: Kuramoto, "Chemical Oscillations, Waves, and Turbulence", 1984; over positions: the PhaseGPT package.
#pragma once

#include "rbar/core/bulk.hpp"
#include "rbar/core/parallel.hpp"
#include "rbar/core/parameters.hpp"
#include "rbar/core/random.hpp"
#include "rbar/kuramoto/dynamics_config.hpp"
#include "rbar/simd/mean_field.hpp"
#include "rbar/simd/scratch.hpp"
#include "rbar/simd/transpose.hpp"

#include <algorithm>

namespace rbar {

// Angles in radians [batch, tokens, n_heads·n_oscillators] -> the same. A large K·dt (above 1) overshoots, as Euler's
// method does. Errors: other shapes; `step` with Causality::reference; a step that may turn a phase further than
// largest_phase_step; in a stream, another batch than before.
template <class T>
struct KuramotoDynamics {
  using Scalar = T;
  using Config = KuramotoConfig;

  // Backward runs the steps again from the first angles rather than keep those of every step: causally, a stretch of
  // tokens at a time, each from the sums that forward had when it came there.
  struct Cache {
    Tensor<T, 3> initial;              // copy of the input
    Tensor<T, 2> frequency, strength;  // [blocks, columns] ω and ±K, an oscillator a column, padded
    Tensor<T, 2> sums;  // [batch·blocks·stretches, evaluations·2·columns] causal: before each stretch
    mutable Tensor<double, 3> partial;  // [batch, 2, blocks·columns] dω and dK, scratch of backward
  };
  // A stream: the running sums of every evaluation, O(1) in the tokens seen.
  struct State {
    Index position = 0;  // tokens seen
    Tensor<T, 2> sums;   // [batch·blocks, 3·evaluations·2·columns] before this stretch, rounded off, and of it
    Tensor<T, 2> frequency, strength;
  };

  Config config;
  Tensor<T, 2> natural_frequency;  // ω [n_heads, n_oscillators], radians a unit of time; N(0, 0.1)
  Tensor<T, 1> coupling_strength;  // K [n_heads], 1 at first

  KuramotoDynamics() = default;
  KuramotoDynamics(const Config& config_, Rng& rng) : config(config_) {
    config.validate();
    ensure_shape(natural_frequency, {config.n_heads, config.n_oscillators});
    for (T& frequency : elements(natural_frequency)) frequency = static_cast<T>(rng.normal(0, 0.1));
    ensure_shape(coupling_strength, {config.n_heads});
    coupling_strength.setConstant(T(1));
  }

  void forward(ConstTensorView<T, 3> initial, Tensor<T, 3>& angles, Cache& cache) const {
    forward(initial, view(natural_frequency), angles, cache);
  }

  // The same with other frequencies than the layer's own [n_heads, n_oscillators] (jittered ones). `initial` may be
  // cache.initial itself.
  void forward(ConstTensorView<T, 3> initial, ConstTensorView<T, 2> frequency, Tensor<T, 3>& angles,
               Cache& cache) const {
    check("KuramotoDynamics::forward", initial, frequency);
    const Index batch = initial.dimension(0), tokens = initial.dimension(1);
    ensure_shape(cache.initial, shape_of(initial));
    if (initial.data() != cache.initial.data()) bulk_copy(initial.data(), initial.size(), cache.initial.data());
    ensure_shape(angles, shape_of(initial));
    spread(frequency, cache.frequency, cache.strength);
    if (config.causality == Causality::causal)
      ensure_shape(cache.sums, {batch * blocks() * stretches(tokens), sums_size()});
    if (config.causality == Causality::reference) return forward_all(initial, angles, cache);
    for_blocks(batch, tokens, [&](Index b, Index block, Index first, Index columns) {
      const auto oscillators = block_of(cache.frequency, cache.strength, block);
      T* to = angles.data() + b * tokens * config.width() + first;
      copy_rows(initial.data() + b * tokens * config.width() + first, config.width(), to, config.width(), tokens,
                columns);
      T* base = cache.sums.data() + (b * blocks() + block) * stretches(tokens) * sums_size();
      T* rest = scratch(2 * sums_size());
      T* partial = rest + sums_size();
      std::fill_n(base, sums_size(), T(0));
      std::fill_n(rest, 2 * sums_size(), T(0));
      for (Index t = 0; t < tokens; t += stretch, base += sums_size()) {
        simd::advance_causal<T>(oscillators, to + t * config.width(), config.width(), columns,
                                std::min(stretch, tokens - t), /*seen=*/t, base, partial, nullptr);
        if (t + stretch < tokens) simd::fold_sums(base, rest, partial, sums_size(), base + sums_size());
      }
    });
  }

  // dinitial is overwritten; grad accumulates. With jittered frequencies, dfrequency (n_heads, n_oscillators) receives
  // the gradient of those instead of grad.natural_frequency.
  void backward(ConstTensorView<T, 3> dangles, const Cache& cache, Tensor<T, 3>& dinitial, KuramotoDynamics& grad,
                Tensor<T, 2>* dfrequency = nullptr) const {
    require_shape("KuramotoDynamics::backward", "dangles", shape_of(dangles), shape_of(cache.initial));
    ensure_shape(dinitial, shape_of(dangles));
    ensure_shape(cache.partial, {dangles.dimension(0), 2, blocks() * width});
    cache.partial.setZero();
    if (config.causality == Causality::causal)
      backward_causal(dangles, cache, dinitial);
    else
      backward_all(dangles, cache, dinitial);
    if (dfrequency) {
      ensure_shape(*dfrequency, shape_of(natural_frequency));
      dfrequency->setZero();
    }
    Tensor<T, 2>& into = dfrequency ? *dfrequency : grad.natural_frequency;
    const double sign = coupling_sign();
    for (Index b = 0; b < dangles.dimension(0); ++b)
      for (Index w = 0; w < config.width(); ++w) {
        into.data()[w] += static_cast<T>(cache.partial(b, 0, w));
        grad.coupling_strength(w / config.n_oscillators) += static_cast<T>(sign * cache.partial(b, 1, w));
      }
  }

  // The next tokens of a stream: the numbers of `forward` on all tokens so far.
  void step(ConstTensorView<T, 3> initial, Tensor<T, 3>& angles, State& state) const {
    check("KuramotoDynamics::step", initial, view(natural_frequency));
    require(config.causality == Causality::causal, "KuramotoDynamics::step", "config.causality", "causal",
            name_of(config.causality));
    const Index batch = initial.dimension(0), tokens = initial.dimension(1);
    ensure_shape(angles, shape_of(initial));
    spread(view(natural_frequency), state.frequency, state.strength);
    if (state.position == 0) {
      ensure_shape(state.sums, {batch * blocks(), 3 * sums_size()});
      state.sums.setZero();
    }
    require_shape("KuramotoDynamics::step", "state", state.sums, {batch * blocks(), 3 * sums_size()});
    for_blocks(batch, tokens, [&](Index b, Index block, Index first, Index columns) {
      const Index offset = b * tokens * config.width() + first;
      copy_rows(initial.data() + offset, config.width(), angles.data() + offset, config.width(), tokens, columns);
      T *base = state.sums.data() + (b * blocks() + block) * 3 * sums_size(), *rest = base + sums_size(),
        *partial = rest + sums_size();
      for (Index t = 0, count; t < tokens; t += count) {
        const Index seen = state.position + t;
        count = std::min(tokens - t, stretch - seen % stretch);
        simd::advance_causal<T>(block_of(state.frequency, state.strength, block),
                                angles.data() + offset + t * config.width(), config.width(), columns, count, seen, base,
                                partial, nullptr);
        if ((seen + count) % stretch == 0) simd::fold_sums(base, rest, partial, sums_size(), base);
      }
    });
    state.position += tokens;
  }

  Tensor<T, 3> operator()(ConstTensorView<T, 3> initial) const {
    Tensor<T, 3> angles;
    Cache cache;
    forward(initial, angles, cache);
    return angles;
  }

  void parameters(auto&& visit) {
    visit("natural_frequency", natural_frequency);
    visit("coupling_strength", coupling_strength);
  }

 private:
  static constexpr Index width = simd::oscillator_columns<T>;  // of a block of oscillators
  static constexpr Index stretch = simd::oscillator_stretch;   // tokens whose record lies in a core's own cache
  struct Purpose {};

  static T* scratch(Index size) { return simd::thread_scratch<T, Purpose>(size); }
  Index blocks() const { return (config.width() + width - 1) / width; }
  Index evaluations() const { return config.steps().evaluations(); }
  Index sums_size() const { return evaluations() * 2 * width; }
  static Index stretches(Index tokens) { return (tokens + stretch - 1) / stretch; }
  double coupling_sign() const { return config.coupling == Coupling::attractive ? 1.0 : -1.0; }

  void check(std::string_view operation, ConstTensorView<T, 3> initial, ConstTensorView<T, 2> frequency) const {
    require_shape(operation, "initial", initial, {-1, -1, config.width()});
    require_shape(operation, "frequency", frequency, {config.n_heads, config.n_oscillators});
  }

  // ω and ±K, an oscillator a column.
  void spread(ConstTensorView<T, 2> from, Tensor<T, 2>& frequency, Tensor<T, 2>& strength) const {
    ensure_shape(frequency, {blocks(), width});
    ensure_shape(strength, {blocks(), width});
    frequency.setZero();
    strength.setZero();
    for (Index w = 0; w < config.width(); ++w) {
      frequency.data()[w] = from.data()[w];
      strength.data()[w] = static_cast<T>(coupling_sign()) * coupling_strength(w / config.n_oscillators);
      // The mean of sines is at most 1 long. A frequency that is no number is refused here too.
      const double turn = config.dt * static_cast<double>(std::abs(frequency.data()[w]) + std::abs(strength.data()[w]));
      require(turn <= largest_phase_step, "KuramotoDynamics", "dt·(|ω| + |K|)", "at most 1000 radians a step", turn);
    }
  }
  simd::OscillatorBlock<T> block_of(const Tensor<T, 2>& frequency, const Tensor<T, 2>& strength, Index block) const {
    return {frequency.data() + block * width, strength.data() + block * width, config.steps()};
  }

  // body(b, block, first oscillator, oscillators) for every block of every sequence.
  template <class Body>
  void for_blocks(Index batch, Index tokens, Body&& body, Index columns = width) const {
    if (tokens == 0) return;
    const Index work = std::max<Index>(1, tokens * columns * evaluations());
    const Index count = (config.width() + columns - 1) / columns;
    parallel_for(batch * count, std::max<Index>(1, 65536 / work), [&](Index begin, Index end) {
      for (Index job = begin; job < end; ++job) {
        const Index first = job % count * columns;
        body(job / count, job % count, first, std::min(columns, config.width() - first));
      }
    });
  }

  static void copy_rows(const T* from, Index from_stride, T* to, Index to_stride, Index count, Index columns,
                        Index padded = 0) {
    for (Index t = 0; t < count; ++t) {
      std::copy_n(from + t * from_stride, columns, to + t * to_stride);
      if (columns < padded) std::fill(to + t * to_stride + columns, to + t * to_stride + padded, T(0));
    }
  }

  void backward_causal(ConstTensorView<T, 3> dangles, const Cache& cache, Tensor<T, 3>& dinitial) const {
    const Index batch = dangles.dimension(0), tokens = dangles.dimension(1);
    for_blocks(batch, tokens, [&](Index b, Index block, Index first, Index columns) {
      const auto oscillators = block_of(cache.frequency, cache.strength, block);
      const Index offset = b * tokens * config.width() + first;
      const T* initial = cache.initial.data() + offset;
      T* dbefore = dinitial.data() + offset;
      double* dblock = cache.partial.data() + b * 2 * blocks() * width + first;
      T* angle = scratch(stretch * width + 4 * sums_size() + stretch * evaluations() * 4 * width);
      T *partial = angle + stretch * width, *later = partial + sums_size(), *later_rest = later + sums_size();
      T *later_partial = later_rest + sums_size(), *record = later_partial + sums_size();
      std::fill_n(later, 3 * sums_size(), T(0));
      copy_rows(dangles.data() + offset, config.width(), dbefore, config.width(), tokens, columns);
      for (Index part = stretches(tokens); part-- > 0;) {
        const Index begin = part * stretch, count = std::min(stretch, tokens - begin);
        copy_rows(initial + begin * config.width(), config.width(), angle, width, count, columns, width);
        std::fill_n(partial, sums_size(), T(0));
        simd::advance_causal<T>(oscillators, angle, width, width, count, begin,
                                cache.sums.data() + ((b * blocks() + block) * stretches(tokens) + part) * sums_size(),
                                partial, record);
        simd::advance_causal_backward<T>(oscillators, record, dbefore + begin * config.width(), config.width(), columns,
                                         count, begin, later, later_partial, dblock, dblock + blocks() * width);
        simd::fold_sums(later, later_rest, later_partial, sums_size(), later);
      }
    });
  }

  // All to all. A block is one register of oscillators. Where there are many tokens, it is transposed and the lanes of
  // a register become tokens: phases and record of a single oscillator stay in a core's cache through all steps.
  static constexpr Index lanes = simd::lanes<T>;
  static constexpr Index most_tokens_in_rows = 16 * lanes;

  struct Layout {
    Index tokens;
    bool transposed;
    Index stride;  // of the oscillators: an odd number of registers, or they share few sets of a cache

    Layout(Index tokens_)
        : tokens(tokens_),
          transposed(tokens > most_tokens_in_rows),
          stride(((tokens + lanes - 1) / lanes | 1) * lanes) {}
    Index size() const { return transposed ? lanes * stride : lanes * tokens; }

    // `columns` oscillators of a sequence, the other lanes 0, and the way back.
    void gather(const T* from, Index width, Index columns, T* to) const {
      if (!transposed) return copy_rows(from, width, to, lanes, tokens, columns, lanes);
      for (Index t = 0; t < tokens; t += lanes)
        simd::rows_to_lanes([&](Index r) { return from + (t + r) * width; }, std::min(lanes, tokens - t), columns,
                            simd::unscaled<T>.data(), to + t, stride);
    }
    void scatter(const T* from, Index width, Index columns, T* to) const {
      if (!transposed) return copy_rows(from, lanes, to, width, tokens, columns);
      for (Index t = 0; t < tokens; t += lanes)
        simd::lanes_to_rows(
            from + t, stride, simd::unscaled<T>.data(), [&](Index r) { return to + (t + r) * width; },
            std::min(lanes, tokens - t), columns);
    }
  };

  // body(field, offset of its phases, first oscillator in it) for what of a block is advanced at once.
  template <class Body>
  void for_fields(const Layout& layout, const Cache& cache, Index first, Index columns, Body&& body) const {
    const T *frequency = cache.frequency.data() + first, *strength = cache.strength.data() + first;
    if (!layout.transposed)
      return body(simd::MeanField<T>{simd::load(frequency), simd::load(strength), layout.tokens, false, config.steps()},
                  0, 0);
    for (Index c = 0; c < columns; ++c)
      body(simd::MeanField<T>{simd::broadcast(frequency[c]), simd::broadcast(strength[c]), layout.tokens, true,
                              config.steps()},
           c * layout.stride, c);
  }
  simd::MeanField<T> field_of(const Layout& layout) const {
    return {simd::zero<T>(), simd::zero<T>(), layout.tokens, layout.transposed, config.steps()};
  }

  void forward_all(ConstTensorView<T, 3> initial, Tensor<T, 3>& angles, Cache& cache) const {
    const Index tokens = initial.dimension(1);
    const Layout layout(tokens);
    for_blocks(
        initial.dimension(0), tokens,
        [&](Index b, Index, Index first, Index columns) {
          const Index offset = b * tokens * config.width() + first;
          const auto any = field_of(layout);
          T* angle = scratch(layout.size() + any.evaluation_size() + any.work_size());
          T *record = angle + layout.size(), *work = record + any.evaluation_size();
          layout.gather(initial.data() + offset, config.width(), columns, angle);
          for_fields(layout, cache, first, columns, [&](const simd::MeanField<T>& field, Index at, Index) {
            simd::advance_all(field, angle + at, record, /*keep=*/false, work);
          });
          layout.scatter(angle, config.width(), columns, angles.data() + offset);
        },
        lanes);
  }

  void backward_all(ConstTensorView<T, 3> dangles, const Cache& cache, Tensor<T, 3>& dinitial) const {
    const Index tokens = dangles.dimension(1);
    const Layout layout(tokens);
    for_blocks(
        dangles.dimension(0), tokens,
        [&](Index b, Index, Index first, Index columns) {
          const Index offset = b * tokens * config.width() + first;
          const auto any = field_of(layout);
          T* angle = scratch(2 * layout.size() + evaluations() * any.evaluation_size() + any.work_size());
          T *dangle = angle + layout.size(), *work = dangle + layout.size(), *record = work + any.work_size();
          layout.gather(cache.initial.data() + offset, config.width(), columns, angle);
          layout.gather(dangles.data() + offset, config.width(), columns, dangle);
          double* dblock = cache.partial.data() + b * 2 * blocks() * width + first;
          for_fields(layout, cache, first, columns, [&](const simd::MeanField<T>& field, Index at, Index c) {
            simd::advance_all(field, angle + at, record, /*keep=*/true, work);
            simd::advance_all_backward(field, record, dangle + at, dblock + c, dblock + blocks() * width + c, work);
          });
          layout.scatter(dangle, config.width(), columns, dinitial.data() + offset);
        },
        lanes);
  }
};

}  // namespace rbar
