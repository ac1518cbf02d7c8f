// A lane report as one HTML file that needs nothing else: no script, no font, no network (its content security policy
// forbids all three, whatever the text in it says), light or dark as the reader's system is.
//   write_file_atomically("lanes.html", lane_report_html(report, "A run"));
#pragma once

#include "rbar/audit/lane_report_charts.hpp"

#include <array>
#include <span>
#include <string>
#include <string_view>

namespace rbar {

namespace detail {

// Lanes differ in colour and in the line under them. A token that is pointed at, or linked to, says what happened to
// it in a bar at the bottom of the window.
inline constexpr std::string_view lane_report_style = R"css(
:root { color-scheme: light dark; --page: #fff; --ink: #1b1f24; --quiet: #57606a; --line: #d0d7de; --panel: #f6f8fa;
  --heat: #b3125d; --reflex: #0b62a8; --standard: #0f6f3f; --deep: #935000; --escalate: #b3125d;
  --reflex-tint: #d7ecfb; --standard-tint: #d3f0df; --deep-tint: #ffe2b3; --escalate-tint: #fad3e2; }
@media (prefers-color-scheme: dark) { :root { --page: #0d1117; --ink: #e6edf3; --quiet: #9198a1; --line: #3d444d;
  --panel: #161b22; --heat: #ff77b0; --reflex: #58a6ff; --standard: #3fb950; --deep: #e3a008; --escalate: #ff77b0;
  --reflex-tint: #12395c; --standard-tint: #11472b; --deep-tint: #5c3c00; --escalate-tint: #63163b; } }
body { margin: 0 auto; padding: 1.5rem 1.5rem 6rem; max-width: 62rem; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
p { margin: .25rem 0 .75rem; color: var(--quiet); max-width: 58rem; }
.text { background: var(--panel); border: 1px solid var(--line); border-radius: 6px; padding: .75rem 1rem;
  font: 15px/2 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere; overflow: hidden; }
.token { unicode-bidi: isolate; color: var(--ink); padding: .15em 0; border-radius: 2px; }
.reflex { background: var(--reflex-tint); }
.standard { background: var(--standard-tint); border-bottom: 2px solid var(--standard); }
.deep { background: var(--deep-tint); border-bottom: 4px double var(--deep); }
.escalate { background: var(--escalate-tint); border-bottom: 3px dotted var(--escalate); }
.refused { outline: 2px solid var(--escalate); text-decoration: line-through; }
.token[data-info]:hover, .token:target { outline: 2px solid var(--ink); }
.token[data-info]:hover::after, .token:target::after { content: attr(data-info); position: fixed; left: 0; right: 0; bottom: 0;
  padding: .6rem 1.5rem; background: var(--ink); color: var(--page); font: 14px/1.5 system-ui, sans-serif;
  white-space: pre-line; max-height: 30vh; overflow: hidden; z-index: 1; }
.token[data-info]:hover::after { z-index: 2; }
.shares { display: flex; height: 1rem; margin: .5rem 0; border-radius: 4px; overflow: hidden; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .9rem .2rem 0; text-align: right; border-bottom: 1px solid var(--line); }
th { font-weight: 600; color: var(--quiet); }
.name { text-align: left; overflow-wrap: anywhere; }
td code { white-space: pre-wrap; unicode-bidi: isolate; }
a { color: inherit; }
svg { display: block; width: 100%; height: auto; }
svg text { fill: var(--quiet); font: 11px system-ui, sans-serif; }
.axis { stroke: var(--line); fill: none; }
.threshold { stroke: var(--quiet); stroke-dasharray: 4 3; }
.ring { fill: none; stroke: var(--ink); stroke-width: 1.5; }
svg .rank { fill: var(--ink); font-weight: 600; stroke: var(--page); stroke-width: 3px; paint-order: stroke; }
.row { display: flex; flex-wrap: wrap; gap: 1.5rem; align-items: flex-start; }
.map { flex: 0 1 27rem; }
)css";

// Cells of HTML; the first `names` are text and stand on the left.
inline std::string table_row(std::string_view tag, std::size_t names, std::span<const std::string> cells) {
  std::string row;
  for (std::size_t i = 0; i < cells.size(); ++i) row += element(tag, i < names ? "class=\"name\"" : "", cells[i]);
  return element("tr", "", row) + "\n";
}

struct LaneReportPage {
  const LaneReport& report;

  static std::string number(Index value) { return std::to_string(value); }
  static std::string swatch(ComputeLane lane) {
    return element("span", format_line("class=\"token %s\"", name_of(lane)), name_of(lane));
  }
  std::string link(Index token) const {
    return element("a", format_line("href=\"#t%zu\"", report.group_of(token).first), number(token));
  }
  std::string quoted(Index token) const { return element("code", "", escape_markup(report.label(token))); }

  // What happened to token t, on one line.
  std::string story(Index t) const {
    const TokenTrace& at = report.token(t);
    std::string out = number(t) + " " + report.label(t) + ": " + name_of(at.routed);
    if (at.lane != at.routed) out.append(at.escalated ? ", escalated to " : ", ended in ").append(name_of(at.lane));
    if (!at.emitted) out += ", REFUSED";
    return out + format_line(" · energy in %.4g, out %.4g · %lld layers · %s", at.energy_in, at.energy_out,
                             static_cast<long long>(at.layers_used), name_of(at.exit));
  }

  std::string text() const {
    std::string spans;
    for (const TokenGroup& group : report.groups) {
      std::string info;
      for (std::size_t i = 0; i < group.count; ++i)
        info.append(i == 0 ? "" : "\n").append(story(static_cast<Index>(group.first + i)));
      const LaneReport::Look look = report.look(group);
      spans += element("span",
                       format_line("id=\"t%zu\" class=\"token %s%s\" data-info=\"", group.first, name_of(look.lane),
                                   look.emitted ? "" : " refused") +
                           escape_markup(info) + "\"",
                       escape_markup(visible_text(group.text, /*break_lines=*/true)));
    }
    std::string legend;
    for (const ComputeLane lane : all_compute_lanes) legend += swatch(lane) + " ";
    legend += element("span", "class=\"token refused\"", "refused");
    return element("h2", "", "The text, by lane") +
           element("p", "", legend + " · point at a token, or follow a link to one, to see what happened to it") +
           element("div", "class=\"text\"", spans) + "\n";
  }

  std::string lanes() const {
    std::string bar, rows;
    const auto row = [&](const std::string& name, const LaneReport::Summary& s) {
      rows += table_row("td", 1,
                        std::array{name, number(s.tokens), format_line("%.1f%%", 100 * s.share),
                                   format_line("%.2f", s.layers_used), format_line("%.4g", s.energy_in),
                                   format_line("%.4g", s.energy_out), number(s.moved), number(s.refused)});
    };
    for (const ComputeLane lane : all_compute_lanes) {
      const LaneReport::Summary summary = report.summary(lane);
      row(swatch(lane), summary);
      bar += element(
          "span", format_line("style=\"width:%.3f%%;background:var(--%s)\"", 100 * summary.share, name_of(lane)), "");
    }
    row("all", report.summary());
    const std::array<std::string, 8> head = {"lane",      "tokens",     "share", "mean layers",
                                             "energy in", "energy out", "moved", "refused"};
    return element("h2", "", "Lanes") + element("div", "class=\"shares\"", bar) + "\n" +
           element("div", "class=\"wide\"", element("table", "", table_row("th", 1, head) + rows)) +
           element("p", "",
                   "Means over the tokens that ended in a lane. Energies are normalised: in at the last routing "
                   "decision, out of the final state. Moved: verification sent the token on to this lane.") +
           "\n";
  }

  std::string thresholds() const {
    const SequenceTrace& trace = report.trace;
    const CoherenceThresholds& at = trace.thresholds;
    std::string exits;
    for (const ExitReason reason : LaneReport::exit_reasons)
      if (report.count(reason) > 0)
        exits.append(exits.empty() ? "" : ", ")
            .append(name_of(reason))
            .append(" ")
            .append(number(report.count(reason)));
    const std::array<std::string, 5> head = {"reflex below", "standard below", "deep below", "refused above",
                                             "pressure"};
    std::string out =
        element("h2", "", "Thresholds in force") +
        element("div", "class=\"wide\"",
                element("table", "",
                        table_row("th", 0, head) +
                            table_row("td", 0,
                                      std::array{energy_text(at.reflex), energy_text(at.standard), energy_text(at.deep),
                                                 energy_text(at.max), format_line("%.2f", trace.pressure)}))) +
        element("p", "", "Reasons to stop: " + exits + ".");
    if (trace.blocks_visited + trace.blocks_skipped > 0)
      out += element("p", "",
                     format_line("Attention visited %lld blocks and skipped %lld; the largest softmax mass a row "
                                 "skipped is at most %.2g.",
                                 static_cast<long long>(trace.blocks_visited),
                                 static_cast<long long>(trace.blocks_skipped), trace.skipped_mass));
    return out + "\n";
  }

  std::string pictures() const {
    if (report.pieces.empty()) return {};
    const LaneCharts charts{report};
    return element("h2", "", "Layers used") + charts.layers() + element("h2", "", "Energies") +
           element("p", "",
                   "A dot is the energy of a token's final state, the line to it comes from the energy it was routed "
                   "by, each in the unit of the point where it was measured. Logarithmic; what is below a thousandth "
                   "of the largest lies on the floor.") +
           charts.energies();
  }

  std::string residuals() const {
    std::string content;
    if (!report.trace.residuals.empty() && !report.pieces.empty())
      content += element("div", "class=\"map\"", LaneCharts{report}.residuals());
    std::string rows;
    for (std::size_t n = 0; n < report.pairs_shown(); ++n) {
      const ResidualPair& pair = report.trace.top_residuals[n];
      rows += table_row("td", 3,
                        std::array{std::to_string(n + 1), link(pair.query) + " " + quoted(pair.query),
                                   link(pair.key) + " " + quoted(pair.key), format_line("%.4g", pair.energy)});
    }
    const std::array<std::string, 4> head = {"", "query", "key", "energy"};
    if (!rows.empty())
      content += element("div", "class=\"wide\"", element("table", "", table_row("th", 3, head) + rows));
    if (content.empty()) return {};
    return element("h2", "", "Which tokens disagree") + element("div", "class=\"row\"", content) + "\n";
  }

  std::string struggles() const {
    std::string rows;
    for (const Index t : report.hardest(LaneReport::rows_shown)) {
      const TokenTrace& at = report.token(t);
      rows += table_row("td", 2,
                        std::array{quoted(t), swatch(at.routed) + " → " + (at.emitted ? swatch(at.lane) : "refused"),
                                   link(t), format_line("%.4g", at.energy_in), format_line("%.4g", at.energy_out),
                                   number(at.layers_used), std::string(name_of(at.exit))});
    }
    if (rows.empty()) return {};
    const std::array<std::string, 7> head = {"",           "routed → ended", "token", "energy in",
                                             "energy out", "layers",         "exit"};
    return element("h2", "", "Where it struggled") +
           element("div", "class=\"wide\"", element("table", "", table_row("th", 2, head) + rows)) + "\n";
  }

  std::string spectra() const {
    std::string rows;
    for (std::size_t point = 0; point < report.trace.spectra.size(); ++point) {
      const SpectralSummary& at = report.trace.spectra[point];
      rows +=
          table_row("td", 1,
                    std::array{std::to_string(point + 1), format_line("%.4g", at.lambda_2), format_line("%.4g", at.gap),
                               format_line("%.4g", at.drift), std::string(name_of(at.level))});
    }
    if (rows.empty()) return {};
    const std::array<std::string, 5> head = {"measured", "λ₂", "gap", "drift", "level"};
    return element("h2", "", "Spectrum of the token sheaf Laplacian") +
           element("div", "class=\"wide\"", element("table", "", table_row("th", 1, head) + rows)) +
           element("p", "", "Where the router measured, from the embeddings up.") + "\n";
  }
};

}  // namespace detail

inline namespace audit {

// The whole file. `title` is plain text.
inline std::string lane_report_html(const LaneReport& report, std::string_view title = "Lanes") {
  const detail::LaneReportPage page{report};
  const std::string heading = detail::escape_markup(detail::visible_text(title));
  const LaneReport::Summary all = report.summary();
  std::string out =
      "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta http-equiv="
      "\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
      "<meta name=\"viewport\" content=\"width=device-width\">\n";
  out += detail::element("title", "", heading) + "\n" + detail::element("style", "", detail::lane_report_style);
  out += "\n</head>\n<body>\n" + detail::element("h1", "", heading) +
         detail::element(
             "p", "",
             detail::format_line("%lld tokens, %.2f layers a token, %lld refused", static_cast<long long>(all.tokens),
                                 all.layers_used, static_cast<long long>(all.refused))) +
         "\n" + page.text() + page.lanes() + page.thresholds();
  return out + page.pictures() + page.struggles() + page.residuals() + page.spectra() + "</body>\n</html>\n";
}

}  // namespace audit
}  // namespace rbar
