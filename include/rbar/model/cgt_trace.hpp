// From a verified pass over one sequence to its trace: who went where, which pairs of tokens disagree, and how the
// tokens hang together (the spectrum of their sheaf Laplacian) where the router measured.
#pragma once

#include "rbar/model/cgt_stack.hpp"
#include "rbar/model/cgt_verify.hpp"
#include "rbar/routing/lane_trace.hpp"
#include "rbar/sheaf/residual.hpp"
#include "rbar/sheaf/spectrum.hpp"

#include <algorithm>
#include <tuple>
#include <vector>

namespace rbar {

namespace detail {

// All E_ij, j <= i, of the final states, in the unit of the router's last point, if they are of at most `limit` tokens;
// and the largest, j < i, in any case.
template <class T>
void trace_residuals(const typename TokenEnergy<T>::Cache& measured, double scale, SequenceTrace& trace,
                     Index limit = 1024) {
  constexpr std::size_t largest = 16;
  const Index tokens = measured.query.dimension(1);
  const ConstMatrixView<T> query = rows(measured.query), key = rows(measured.key);
  const bool keeps_all = tokens <= limit;
  trace.residuals.assign(keeps_all ? static_cast<std::size_t>(tokens * tokens) : 0, 0);
  Matrix<T> energy(std::min(tokens, limit), tokens);  // of as many queries at a time
  // A heap of the largest, the smallest of them in front. Equal energies: the earlier pair.
  const auto before = [](const ResidualPair& a, const ResidualPair& b) {
    return std::tuple(-a.energy, a.query, a.key) < std::tuple(-b.energy, b.query, b.key);
  };
  std::vector<ResidualPair>& pairs = trace.top_residuals;
  pairs.clear();
  for (Index i = 0; i < tokens; ++i) {
    const Index row = i % limit, count = std::min(limit, tokens - i);
    if (row == 0)
      pairwise_energies<T>(ConstMatrixView<T>(query.data() + i * query.cols(), count, query.cols()), key,
                           MatrixView<T>(energy.data(), count, tokens));
    for (Index j = 0; j <= i; ++j) {
      const double normalised = static_cast<double>(energy(row, j)) / scale;
      if (keeps_all) trace.residuals[static_cast<std::size_t>(i * tokens + j)] = normalised;
      const ResidualPair pair{i, j, normalised};
      if (j == i || (pairs.size() == largest && !before(pair, pairs.front()))) continue;
      pairs.push_back(pair);
      std::push_heap(pairs.begin(), pairs.end(), before);
      if (pairs.size() <= largest) continue;
      std::pop_heap(pairs.begin(), pairs.end(), before);
      pairs.pop_back();
    }
  }
  std::sort_heap(pairs.begin(), pairs.end(), before);
}

}  // namespace detail

// `state` is that of a stream that has seen this one sequence in one step. Longer sequences than spectra can be had of
// (SpectrumConfig::dense_limit) have none, and beyond 1024 tokens only the largest residuals are kept. Errors: a stream
// of more steps or sequences.
template <class T>
SequenceTrace sequence_trace(const CGTOutput<T>& output, const CGTStack<T>& stack,
                             const typename CGTStack<T>::State& state, double pressure) {
  const LaneSheet<T>& sheet = state.sheet;
  require(sheet.batch == 1 && state.position == sheet.tokens, "sequence_trace", "tokens of the stream", sheet.tokens,
          state.position);
  SequenceTrace trace;
  trace.thresholds = sheet.thresholds;
  trace.thresholds.max = output.bound();
  trace.pressure = pressure;
  for (Index t = 0; t < sheet.tokens; ++t) trace.tokens.push_back(output.trace(0, t));
  detail::trace_residuals<T>(state.points_state[3].energy.cache, static_cast<double>(stack.router.scale(3)), trace);

  const SpectrumConfig spectrum_config;
  std::vector<double> before;
  for (const auto& point : state.points_state) {
    const auto& measured = point.energy.cache;
    if (measured.query.size() == 0 || sheet.tokens > spectrum_config.dense_limit) continue;
    const std::vector<double> spectrum =
        smallest_eigenvalues(coherence_laplacian<T>(rows(measured.query), rows(measured.key)), spectrum_config);
    trace.spectra.push_back(summarise_spectrum(spectrum, before, spectrum_config));
    before = spectrum;
  }
  trace.blocks_visited = state.sparsity.visible_blocks - state.sparsity.skipped_blocks;
  trace.blocks_skipped = state.sparsity.skipped_blocks;
  trace.skipped_mass = state.sparsity.largest_share_bound;
  return trace;
}

}  // namespace rbar
