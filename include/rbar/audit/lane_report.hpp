// Where a Coherence-Gated Transformer sent each token of a text, and where it struggled: as coloured or plain text
// here, as one self-contained HTML file in audit/lane_report_html.hpp.
//   std::cout << lane_report(model, tokens, pieces).text(/*colour=*/true);
#pragma once

#include "rbar/audit/report_text.hpp"
#include "rbar/core/parameters.hpp"
#include "rbar/routing/lane_trace.hpp"

#include <algorithm>
#include <concepts>
#include <iterator>
#include <numeric>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace rbar {

namespace detail {

// Thresholds may be infinite, or above everything (ThresholdTuner::above_every_energy, in a narrower scalar perhaps).
inline bool is_no_threshold(double value) { return value >= 1e29; }

// Four digits of an energy or a threshold.
inline std::string energy_text(double value) { return is_no_threshold(value) ? "none" : format_line("%.4g", value); }

}  // namespace detail

inline namespace audit {

// One sequence: the trace, and the text of each token. Energies are normalised, layers are counts, shares in [0, 1].
struct LaneReport {
  // Errors: as many pieces as traced tokens are needed; residuals of no or of all pairs; pairs of tokens that are
  // there, the key not after the query; energies that are finite and at least 0; thresholds that are at least 0.
  LaneReport(std::vector<std::string> token_pieces, SequenceTrace sequence)
      : pieces(std::move(token_pieces)), trace(std::move(sequence)), groups(detail::groups_by_character(pieces)) {
    constexpr const char* where = "LaneReport";
    const auto tokens = static_cast<Index>(pieces.size());
    require(trace.tokens.size() == pieces.size(), where, "tokens of the trace", pieces.size(), trace.tokens.size());
    require(trace.residuals.empty() || static_cast<Index>(trace.residuals.size()) == tokens * tokens, where,
            "residuals", tokens * tokens, trace.residuals.size());
    for (const TokenTrace& token : trace.tokens) {
      require_energy("energy_in", token.energy_in);
      require_energy("energy_out", token.energy_out);
      require(token.layers_used >= 0, where, "layers_used", "at least 0", token.layers_used);
    }
    for (const ResidualPair& pair : trace.top_residuals) {
      require(pair.query >= 0 && pair.query < tokens, where, "query of a residual pair", "a token", pair.query);
      require(pair.key >= 0 && pair.key <= pair.query, where, "key of a residual pair", "0 to its query", pair.key);
      require_energy("energy of a residual pair", pair.energy);
    }
    for (const double energy : trace.residuals) require_energy("residuals", energy);
    const CoherenceThresholds& at = trace.thresholds;  // max may be a bound below the others
    for (const double threshold : {at.reflex, at.standard, at.deep, at.max})
      require(threshold >= 0, where, "thresholds", "at least 0", threshold);
  }

  std::vector<std::string> pieces;
  SequenceTrace trace;
  std::vector<detail::TokenGroup> groups;  // tokens that share a character

  struct Summary {
    Index tokens = 0;
    Index moved = 0;                                        // by the verification, from the lane they were routed to
    Index refused = 0;                                      // energy_out is above θ_max in every lane tried
    double share = 0;                                       // of all tokens
    double layers_used = 0, energy_in = 0, energy_out = 0;  // means
  };
  Summary summary() const {
    return summary_of([](const TokenTrace&) { return true; });
  }
  // Of the tokens that ended in this lane.
  Summary summary(ComputeLane lane) const {
    return summary_of([lane](const TokenTrace& token) { return token.lane == lane; });
  }

  static constexpr ExitReason exit_reasons[] = {ExitReason::max_layers_reached, ExitReason::energy_converged,
                                                ExitReason::perfect_coherence, ExitReason::collapsed};
  Index count(ExitReason reason) const {
    return std::count_if(trace.tokens.begin(), trace.tokens.end(),
                         [reason](const TokenTrace& token) { return token.exit == reason; });
  }

  // Where the model struggled: refused tokens first, then by descending energy of the final state.
  std::vector<Index> hardest(std::size_t most) const {
    std::vector<Index> order(trace.tokens.size());
    std::iota(order.begin(), order.end(), Index{0});
    most = std::min(most, order.size());
    const auto harder = [&](Index a, Index b) {
      const TokenTrace &first = token(a), &second = token(b);
      if (first.emitted != second.emitted) return !first.emitted;
      return first.energy_out != second.energy_out ? first.energy_out > second.energy_out : a < b;
    };
    std::partial_sort(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(most), order.end(), harder);
    order.resize(most);
    return order;
  }

  const TokenTrace& token(Index t) const { return trace.tokens[static_cast<std::size_t>(t)]; }
  // The group that token t is shown in.
  const detail::TokenGroup& group_of(Index t) const {
    return *std::prev(std::upper_bound(groups.begin(), groups.end(), static_cast<std::size_t>(t),
                                       [](std::size_t at, const detail::TokenGroup& g) { return at < g.first; }));
  }
  // Token t in a table: quoted, short, and safe to print.
  std::string label(Index t) const {
    return std::string("'") + detail::shorten(detail::visible_text(group_of(t).text), 24) + "'";
  }

  // How a group is shown: as its deepest lane, and as refused if one of its tokens is.
  struct Look {
    ComputeLane lane = ComputeLane::reflex;
    bool emitted = true;
  };
  Look look(const detail::TokenGroup& group) const {
    Look result;
    for (std::size_t t = group.first; t < group.first + group.count; ++t) {
      result.lane = std::max(result.lane, trace.tokens[t].lane);
      result.emitted = result.emitted && trace.tokens[t].emitted;
    }
    return result;
  }

  static constexpr std::size_t rows_shown = 10;  // of long tables
  std::size_t pairs_shown() const { return std::min(rows_shown, trace.top_residuals.size()); }

  // In colour: the text, each token coloured by its lane, refused ones inverted. Without: a row of letters (r, s, d, e
  // for the lanes, X for refused). Then tables: lanes, thresholds, exits, struggles, residuals, spectra.
  std::string text(bool colour) const {
    return (colour ? coloured_text() : grid()) + lane_table() + circumstances() + hardest_table() + residual_table() +
           spectrum_table();
  }

 private:
  static constexpr std::string_view reset = "\x1b[0m";

  static void require_energy(const char* what, double energy) {
    require(energy >= 0 && energy <= 1e300, "LaneReport", what, "finite and at least 0", energy);
  }

  Summary summary_of(auto&& belongs) const {
    Summary result;
    for (const TokenTrace& token : trace.tokens) {
      if (!belongs(token)) continue;
      ++result.tokens;
      result.moved += token.escalated;
      result.refused += !token.emitted;
      result.layers_used += static_cast<double>(token.layers_used);
      result.energy_in += token.energy_in;
      result.energy_out += token.energy_out;
    }
    if (result.tokens == 0) return result;
    const auto count = static_cast<double>(result.tokens);
    result.share = count / static_cast<double>(trace.tokens.size());
    for (double* sum : {&result.layers_used, &result.energy_in, &result.energy_out}) *sum /= count;
    return result;
  }

  // xterm's 256 colours: blue, green, orange, pink.
  static std::string colour_of(ComputeLane lane) {
    constexpr int colours[] = {75, 78, 214, 205};
    return "\x1b[38;5;" + std::to_string(colours[static_cast<int>(lane)]) + "m";
  }
  std::string coloured_text() const {
    constexpr std::string_view inverted = "\x1b[7m";
    std::string out;
    for (const auto& group : groups) {
      const Look as = look(group);
      out.append(colour_of(as.lane))
          .append(as.emitted ? "" : inverted)
          .append(detail::visible_text(group.text, /*break_lines=*/true))
          .append(reset);
    }
    out += "\nlanes:";
    for (const ComputeLane lane : all_compute_lanes) out.append(" ").append(colour_of(lane)).append(name_of(lane));
    return out.append(" ").append(inverted).append("refused").append(reset).append("\n");
  }
  std::string grid() const {
    constexpr std::size_t columns = 100;
    std::string out;
    for (std::size_t first = 0; first < pieces.size(); first += columns) {
      const std::size_t last = std::min(pieces.size(), first + columns);
      out += detail::format_line("tokens %zu to %zu\n  ", first, last - 1);
      for (std::size_t t = first; t < last; ++t) out += trace.tokens[t].emitted ? *name_of(trace.tokens[t].lane) : 'X';
      out += "\n";
    }
    return out;
  }
  std::string lane_table() const {
    std::string out = "lane      tokens   share  layers  energy in  energy out  moved  refused\n";
    const auto line = [&](const char* name, const Summary& s) {
      out += detail::format_line("%-8s  %6lld  %5.1f%%  %6.2f  %9.4g  %10.4g  %5lld  %7lld\n", name,
                                 static_cast<long long>(s.tokens), 100 * s.share, s.layers_used, s.energy_in,
                                 s.energy_out, static_cast<long long>(s.moved), static_cast<long long>(s.refused));
    };
    for (const ComputeLane lane : all_compute_lanes) line(name_of(lane), summary(lane));
    line("all", summary());
    return out;
  }
  std::string circumstances() const {
    const CoherenceThresholds& at = trace.thresholds;
    std::string out = "thresholds  reflex " + detail::energy_text(at.reflex) + ", standard " +
                      detail::energy_text(at.standard) + ", deep " + detail::energy_text(at.deep) + ", max " +
                      detail::energy_text(at.max) + "; pressure " + detail::format_line("%.2f", trace.pressure) + "\n";
    out += "exits      ";
    for (const ExitReason reason : exit_reasons)
      if (count(reason) > 0)
        out += detail::format_line(" %s %lld", name_of(reason), static_cast<long long>(count(reason)));
    out += "\n";
    if (trace.blocks_visited + trace.blocks_skipped > 0)
      out += detail::format_line("attention   %lld blocks visited, %lld skipped (largest mass skipped %.2g)\n",
                                 static_cast<long long>(trace.blocks_visited),
                                 static_cast<long long>(trace.blocks_skipped), trace.skipped_mass);
    return out;
  }
  std::string hardest_table() const {
    std::string out = "hardest tokens\ntoken  routed    ended     energy in  energy out  layers  exit\n";
    for (const Index t : hardest(rows_shown)) {
      const TokenTrace& at = token(t);
      out += detail::format_line("%5lld  %-8s  %-8s  %9.4g  %10.4g  %6lld  %-18s  ", static_cast<long long>(t),
                                 name_of(at.routed), at.emitted ? name_of(at.lane) : "refused", at.energy_in,
                                 at.energy_out, static_cast<long long>(at.layers_used), name_of(at.exit)) +
             label(t) + "\n";
    }
    return out;
  }
  std::string residual_table() const {
    if (trace.top_residuals.empty()) return {};
    std::string out = "largest residuals\nquery    key      energy\n";
    for (const ResidualPair& pair : std::span(trace.top_residuals).first(pairs_shown()))
      out += detail::format_line("%5lld  %5lld  %10.4g  ", static_cast<long long>(pair.query),
                                 static_cast<long long>(pair.key), pair.energy) +
             label(pair.query) + " against " + label(pair.key) + "\n";
    return out;
  }
  std::string spectrum_table() const {
    if (trace.spectra.empty()) return {};
    std::string out = "measured    lambda_2         gap       drift  from the embeddings up\n";
    for (std::size_t point = 0; point < trace.spectra.size(); ++point) {
      const SpectralSummary& at = trace.spectra[point];
      out += detail::format_line("%8zu  %10.4g  %10.4g  %10.4g  %s\n", point + 1, at.lambda_2, at.gap, at.drift,
                                 name_of(at.level));
    }
    return out;
  }
};

// A model that says what it did with a sequence.
template <class M>
concept TracedModel = LanguageModel<M> && requires(const M model, std::span<const Token> tokens) {
  { model.trace(tokens) } -> std::convertible_to<SequenceTrace>;
};

// Runs `tokens` through the model and reports. Errors: as many pieces as tokens are needed; what trace refuses.
template <TracedModel M>
LaneReport lane_report(const M& model, std::span<const Token> tokens, std::vector<std::string> pieces) {
  require(pieces.size() == tokens.size(), "lane_report", "pieces", tokens.size(), pieces.size());
  return LaneReport(std::move(pieces), model.trace(tokens));
}

}  // namespace audit
}  // namespace rbar
