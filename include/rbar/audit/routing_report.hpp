// Which tokens a router sent to attention, layer by layer: as coloured text, as plain text, as SVG.
//   std::cout << routing_report(model, tokens, pieces).text(/*colour=*/true);
#pragma once

#include "rbar/audit/report_text.hpp"
#include "rbar/core/parameters.hpp"

#include <algorithm>
#include <concepts>
#include <iterator>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace rbar {

inline namespace audit {

// One sequence. Layers are added by routing_report() below, or by hand for a model of another make.
struct RoutingReport {
  struct Layer {
    std::vector<bool> attended;  // [tokens]: attention, else mixing
    double mean_coherence = 0, mean_score = 0;
  };

  std::vector<std::string> pieces;  // the text of each token
  std::vector<Layer> layers;

  // Errors: another number of tokens than pieces.
  void add_layer(std::span<const bool> attended, double mean_coherence, double mean_score) {
    require(attended.size() == pieces.size(), "RoutingReport::add_layer", "attended", pieces.size(), attended.size());
    layers.push_back({{attended.begin(), attended.end()}, mean_coherence, mean_score});
  }

  // Layers that gave token t attention.
  std::size_t times_attended(std::size_t t) const {
    return static_cast<std::size_t>(
        std::count_if(layers.begin(), layers.end(), [t](const Layer& layer) { return layer.attended[t]; }));
  }
  double attention_share(const Layer& layer) const {
    const auto count = std::count(layer.attended.begin(), layer.attended.end(), true);
    return layer.attended.empty() ? 0 : static_cast<double>(count) / static_cast<double>(layer.attended.size());
  }
  double attention_share() const {
    double sum = 0;
    for (const Layer& layer : layers) sum += attention_share(layer);
    return layers.empty() ? 0 : sum / static_cast<double>(layers.size());
  }

  // In colour: the text, each token coloured by the number of layers that gave it attention. Without: a
  // row of # (attention) and . (mixing) for each layer. Then a table of shares and means.
  std::string text(bool colour) const { return (colour ? coloured_text() : grid()) + table(); }

  // A heat map, layers downwards and tokens to the right, as a complete SVG file.
  std::string svg() const {
    constexpr int cell = 14, left = 60, label = 90;
    const int width = left + cell * static_cast<int>(pieces.size()) + 10;
    const int height = 30 + cell * static_cast<int>(layers.size());
    std::string out = detail::format_line(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%d\" font-family=\"monospace\" "
        "font-size=\"10\">\n",
        width, height + label);
    out +=
        "<title>Tokens given attention (dark) and mixed (light)</title>\n<rect width=\"100%\" height=\"100%\" "
        "fill=\"white\"/>\n";
    for (std::size_t l = 0; l < layers.size(); ++l) {
      const int y = 20 + cell * static_cast<int>(l);
      out += detail::format_line("<text x=\"4\" y=\"%d\">layer %d</text>\n", y + cell - 4, static_cast<int>(l));
      for (std::size_t t = 0; t < pieces.size(); ++t)
        out += detail::format_line("<rect x=\"%d\" y=\"%d\" width=\"%d\" height=\"%d\" fill=\"%s\"/>\n",
                                   left + cell * static_cast<int>(t), y, cell - 1, cell - 1,
                                   layers[l].attended[t] ? "#b2182b" : "#e6e6e6");
    }
    for (std::size_t t = 0; t < pieces.size(); ++t) {
      const int x = left + cell * static_cast<int>(t) + 4;
      out +=
          detail::format_line("<text transform=\"translate(%d,%d) rotate(90)\" xml:space=\"preserve\">", x, height - 6);
      out += detail::escape_markup(detail::visible_text(pieces[t])) + "</text>\n";
    }
    return out + "</svg>\n";
  }

 private:
  // xterm's 256 colours from grey over blue and yellow to red.
  std::string colour_of(std::size_t times) const {
    constexpr int ramp[] = {244, 75, 79, 220, 208, 196};
    const std::size_t most = std::max<std::size_t>(1, layers.size());
    return "\x1b[38;5;" + std::to_string(ramp[(times * (std::size(ramp) - 1) + most / 2) / most]) + "m";
  }
  std::string coloured_text() const {
    constexpr std::string_view reset = "\x1b[0m";
    std::string out;
    for (const auto& group : detail::groups_by_character(pieces)) {
      std::size_t times = 0;  // of the most attended token in it
      for (std::size_t t = group.first; t < group.first + group.count; ++t) times = std::max(times, times_attended(t));
      out.append(colour_of(times)).append(detail::visible_text(group.text, /*break_lines=*/true)).append(reset);
    }
    out += "\nlayers that gave attention:";
    for (std::size_t n = 0; n <= layers.size(); ++n) out.append(" ").append(colour_of(n)).append(std::to_string(n));
    return out.append(reset).append("\n");
  }
  std::string grid() const {
    constexpr std::size_t columns = 100;
    std::string out;
    for (std::size_t first = 0; first < pieces.size(); first += columns) {
      const std::size_t last = std::min(pieces.size(), first + columns);
      out += detail::format_line("tokens %zu to %zu\n", first, last - 1);
      for (std::size_t l = 0; l < layers.size(); ++l) {
        out += detail::format_line("layer %3zu  ", l);
        for (std::size_t t = first; t < last; ++t) out += layers[l].attended[t] ? '#' : '.';
        out += "\n";
      }
    }
    return out;
  }
  std::string table() const {
    std::string out = "layer  attention  mixing  mean coherence  mean score\n";
    for (std::size_t l = 0; l < layers.size(); ++l) {
      const double share = attention_share(layers[l]);
      out += detail::format_line("%5zu  %8.1f%%  %5.1f%%  %14.3f  %10.3f\n", l, 100 * share, 100 * (1 - share),
                                 layers[l].mean_coherence, layers[l].mean_score);
    }
    return out +
           detail::format_line("  all  %8.1f%%  %5.1f%%\n", 100 * attention_share(), 100 * (1 - attention_share()));
  }
};

// A model whose cache keeps each layer's routing, as CoRTModel's does.
template <class M>
concept RoutedModel = LanguageModel<M> && requires(const typename M::Cache cache) {
  { cache.layers.front().routed.router.routing.attention_mask.data() } -> std::same_as<const bool*>;
  { cache.layers.front().routed.router.stats.mean_coherence } -> std::convertible_to<double>;
  { cache.layers.front().routed.router.stats.mean_score } -> std::convertible_to<double>;
};

// Runs `tokens` through the model and reports. Errors: as many pieces as tokens are needed; what forward refuses.
template <RoutedModel M>
RoutingReport routing_report(const M& model, std::span<const Token> tokens, std::vector<std::string> pieces) {
  require(pieces.size() == tokens.size(), "routing_report", "pieces", tokens.size(), pieces.size());
  typename M::Cache cache;
  Tensor<typename M::Scalar, 3> logits;
  model.forward(view(tokens.data(), 1, tokens.size()), logits, cache);
  RoutingReport report;
  report.pieces = std::move(pieces);
  for (const auto& layer : cache.layers) {
    const auto& router = layer.routed.router;
    report.add_layer(std::span(router.routing.attention_mask.data(), tokens.size()), router.stats.mean_coherence,
                     router.stats.mean_score);
  }
  return report;
}

}  // namespace audit
}  // namespace rbar
