// The pictures of a lane report, as SVG inside a page that defines their colours (--reflex, --heat and so on).
#pragma once

#include "rbar/audit/lane_report.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <string>
#include <string_view>
#include <vector>

namespace rbar::detail {

inline std::string element(std::string_view tag, std::string_view attributes, std::string_view content) {
  std::string out = "<";
  out.append(tag).append(attributes.empty() ? "" : " ").append(attributes).append(">").append(content);
  return out.append("</").append(tag).append(">");
}

// Of a report with at least one token.
struct LaneCharts {
  const LaneReport& report;

  // Charts are drawn in a field of these sizes, in the units of their viewBox.
  static constexpr double width = 880, left = 8, right = 116, top = 8;
  double column() const { return (width - left - right) / static_cast<double>(report.pieces.size()); }
  double x_of(Index token) const { return left + column() * static_cast<double>(token); }
  static std::string chart(double chart_width, double height, std::string_view title, const std::string& content) {
    return element("svg", format_line("role=\"img\" viewBox=\"0 0 %.0f %.0f\"", chart_width, height),
                   element("title", "", title) + content) +
           "\n";
  }
  static std::string label_at(double x, double y, std::string_view attributes, std::string_view text) {
    return element("text", format_line("x=\"%.2f\" y=\"%.2f\" ", x, y).append(attributes), text);
  }
  std::string token_axis(double y) const {
    const auto last = static_cast<Index>(report.pieces.size()) - 1;
    return format_line("<path class=\"axis\" d=\"M%.2f %.2fH%.2f\"/>", left, y, width - right) +
           label_at(left, y + 13, "", "token 0") +
           (last > 0 ? label_at(width - right, y + 13, "text-anchor=\"end\"", std::to_string(last)) : std::string());
  }
  // One path a lane, made of shape(token) for the lane's tokens.
  std::string paths(std::string_view style, auto&& shape) const {
    std::string out;
    for (const ComputeLane lane : all_compute_lanes) {
      std::string path;
      for (Index t = 0; t < static_cast<Index>(report.pieces.size()); ++t)
        if (report.token(t).lane == lane) path += shape(t);
      if (path.empty()) continue;
      out.append("<path style=\"").append(style).append(":var(--").append(name_of(lane)).append(")\" d=\"");
      out.append(path).append("\"/>");
    }
    return out;
  }

  std::string layers() const {
    constexpr double height = 110, field = height - top - 22;
    Index most = 1;
    for (const TokenTrace& token : report.trace.tokens) most = std::max(most, token.layers_used);
    const double unit = field / static_cast<double>(most), bar = column() * (column() > 3 ? 0.85 : 1);
    const auto shape = [&](Index t) {
      const double tall = unit * static_cast<double>(report.token(t).layers_used);
      return format_line("M%.2f %.2fv%.2fh%.2fv%.2fz", x_of(t), top + field, -tall, bar, tall);
    };
    return chart(
        width, height, "Layers used by each token",
        token_axis(top + field) + paths("fill", shape) +
            label_at(width - right + 6, top + 8, "", std::to_string(most) + (most == 1 ? " layer" : " layers")));
  }

  // A logarithmic axis; what is below a thousandth of the largest lies on the floor. A dot is the energy of a token's
  // final state, the line to it comes from the energy it was routed by.
  std::string energies() const {
    constexpr double height = 230, field = height - top - 22;
    const CoherenceThresholds& at = report.trace.thresholds;
    struct Line {
      const char* name;
      double value;
    };
    const Line lines[] = {{"θ reflex", at.reflex}, {"θ standard", at.standard}, {"θ deep", at.deep}, {"θ max", at.max}};
    double most = 0, least = 1e300;
    const auto include = [&](double value) {
      if (value <= 0 || is_no_threshold(value)) return;
      most = std::max(most, value);
      least = std::min(least, value);
    };
    for (const Line& line : lines) include(line.value);
    for (const TokenTrace& token : report.trace.tokens) include(token.energy_in), include(token.energy_out);
    if (most == 0) most = 1;
    const double high = std::log10(most) + 0.1, low = std::log10(std::max(std::min(least, most), most * 1e-3)) - 0.1;
    const auto y_of = [&](double value) {
      const double share = value <= 0 ? 0 : std::clamp((std::log10(value) - low) / (high - low), 0.0, 1.0);
      return top + field * (1 - share);
    };

    const double middle = column() / 2, radius = std::clamp(middle, 1.0, 3.0);
    std::string content = token_axis(top + field);
    content += format_line("<g stroke-width=\"%.2f\" opacity=\".45\">", std::min(1.5, column() * 0.6)) +
               paths("stroke",
                     [&](Index t) {
                       return format_line("M%.2f %.2fV%.2f", x_of(t) + middle, y_of(report.token(t).energy_in),
                                          y_of(report.token(t).energy_out));
                     }) +
               format_line("</g><g fill=\"none\" stroke-linecap=\"round\" stroke-width=\"%.2f\">", 2 * radius) +
               paths("stroke",
                     [&](Index t) {
                       return format_line("M%.2f %.2fh0", x_of(t) + middle, y_of(report.token(t).energy_out));
                     }) +
               "</g>";
    double above = height;  // labels stay apart
    for (const Line& line : lines) {
      if (is_no_threshold(line.value)) continue;
      const double y = y_of(line.value), y_label = std::min(y + 4, above - 13);
      above = y_label;
      content += format_line("<path class=\"threshold\" d=\"M%.2f %.2fH%.2f\"/>", left, y, width - right) +
                 label_at(width - right + 6, y_label, "", line.name + format_line(" %.3g", line.value));
    }
    return chart(width, height, "Energy of each token", content);
  }

  // ‖r_ij‖ of all pairs as ten shades: queries downwards, keys to the right. Long texts are shown by the largest of
  // side × side pairs; the darkest shade begins at the 99th percentile, so that one outlier hides nothing.
  std::string residuals() const {
    constexpr Index most_cells = 128;
    constexpr int shades = 10;
    constexpr double size = 400, margin = 16;
    const auto tokens = static_cast<Index>(report.pieces.size());
    const Index side = (tokens + most_cells - 1) / most_cells, cells = (tokens + side - 1) / side;
    std::vector<double> largest(static_cast<std::size_t>(cells * cells));
    std::vector<double> sorted;
    for (Index i = 0; i < tokens; ++i)
      for (Index j = 0; j <= i; ++j) {
        double& cell = largest[static_cast<std::size_t>(i / side * cells + j / side)];
        cell = std::max(cell, report.trace.residuals[static_cast<std::size_t>(i * tokens + j)]);
      }
    for (Index i = 0; i < cells; ++i)
      for (Index j = 0; j <= i; ++j) sorted.push_back(largest[static_cast<std::size_t>(i * cells + j)]);
    const auto rank = static_cast<std::ptrdiff_t>((sorted.size() - 1) * 99 / 100);
    std::nth_element(sorted.begin(), sorted.begin() + rank, sorted.end());
    const double darkest = std::max(sorted[static_cast<std::size_t>(rank)], 1e-300);

    const double cell = size / static_cast<double>(cells);
    std::array<std::string, shades + 1> path;
    for (Index i = 0; i < cells; ++i)
      for (Index j = 0, end = 0; j <= i; j = end) {  // runs of one shade
        const auto shade_of = [&](Index key) {
          const double energy = largest[static_cast<std::size_t>(i * cells + key)];
          return static_cast<std::size_t>(std::ceil(shades * std::sqrt(std::min(1.0, energy / darkest))));
        };
        for (end = j + 1; end <= i && shade_of(end) == shade_of(j);) ++end;
        const double run = cell * static_cast<double>(end - j);
        path[shade_of(j)] += format_line("M%.2f %.2fh%.2fv%.2fh%.2fz", margin + cell * static_cast<double>(j),
                                         margin + cell * static_cast<double>(i), run, cell, -run);
      }
    std::string content = format_line("<path class=\"axis\" d=\"M%.2f %.2fv%.2fh%.2fz\"/>", margin, margin, size, size);
    for (std::size_t shade = 1; shade <= shades; ++shade)
      if (!path[shade].empty())
        content += format_line("<path style=\"fill:var(--heat)\" opacity=\"%.1f\" shape-rendering=\"crispEdges\" d=\"",
                               static_cast<double>(shade) / shades) +
                   path[shade] + "\"/>";
    for (std::size_t n = 0; n < report.pairs_shown(); ++n) {
      const ResidualPair& pair = report.trace.top_residuals[n];
      const Index column = pair.key / side, row = pair.query / side;
      const double x = margin + cell * (static_cast<double>(column) + 0.5);
      const double y = margin + cell * (static_cast<double>(row) + 0.5);
      const double radius = std::clamp(cell / 2, 4.0, 12.0);
      content += format_line("<circle class=\"ring\" cx=\"%.2f\" cy=\"%.2f\" r=\"%.2f\"/>", x, y, radius) +
                 label_at(x + radius + 2, y - 3, "class=\"rank\"", std::to_string(n + 1));
    }
    content += label_at(margin, margin - 4, "", "key 0") +
               label_at(margin + size, margin + size + 12, "text-anchor=\"end\"",
                        format_line("key %lld", static_cast<long long>(tokens - 1))) +
               label_at(margin, margin + size + 12, "", format_line("query %lld", static_cast<long long>(tokens - 1)));
    const std::string caption =
        element("p", "",
                format_line("The shade is the distance ‖r‖, from 0 to %.3g and more", std::sqrt(darkest)) +
                    (side > 1 ? format_line("; a cell is the largest of %lld × %lld pairs.",
                                            static_cast<long long>(side), static_cast<long long>(side))
                              : std::string(".")));
    return chart(size + 2 * margin, size + 2 * margin, "Residual of each query and key", content) + caption;
  }
};

}  // namespace rbar::detail
