// Lines over two axes as one SVG file and as CSV: learning curves, sweeps of a parameter, curves against a theory.
//   LineChart chart{.title = "Synchronisation", .x_label = "K", .y_label = "R"};
//   chart.series.push_back({.name = "simulated", .x = couplings, .y = order, .markers = true});
//   chart.vertical.push_back({critical, "K_c"});
//   write_file_atomically("r_of_k.svg", line_chart_svg(chart));
#pragma once

#include "rbar/audit/report_text.hpp"
#include "rbar/core/error.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace rbar {

// Points that cannot be drawn (not finite, beyond 1e150, not positive on a logarithmic axis) are gaps in the line.
struct LineSeries {
  std::string name = {};  // in the legend; empty: not there
  std::vector<double> x = {}, y = {};
  std::string group = {};  // series of one group have one colour; empty: a colour of its own
  bool faint = false;      // thin and pale, behind the others: the single runs behind their mean
  bool dashed = false;
  bool markers = false;                     // dots on the points
  std::vector<double> low = {}, high = {};  // a band from low to high at each x, such as a spread; empty: none
};

struct LineChart {
  std::string title = {}, x_label = {}, y_label = {};
  bool log_x = false, log_y = false;
  std::vector<LineSeries> series = {};
  struct Mark {
    double at = 0;
    std::string label = {};
  };
  std::vector<Mark> vertical = {}, horizontal = {};  // reference lines across the field
  std::optional<double> y_low = {}, y_high = {};     // ends of the y axis instead of the data's; what is outside is cut
};

namespace detail {

// Values to pixels. `low` and `high` are logarithms on a logarithmic axis.
struct ChartAxis {
  bool logarithmic = false;
  double low = 1, high = 0;  // nothing included yet
  double first = 0, last = 1;

  bool shows(double value) const { return std::abs(value) <= 1e150 && (!logarithmic || value >= 1e-150); }
  double scale(double value) const { return logarithmic ? std::log10(value) : value; }
  void include(double value) {
    if (!shows(value)) return;
    const double at = scale(value);
    const bool fresh = low > high;
    low = fresh ? at : std::min(low, at);
    high = fresh ? at : std::max(high, at);
  }
  // Room beside the outermost values, so that no line lies on the frame; and some width where there is but one value.
  void settle(double room) {
    if (low > high) low = 0, high = 1;
    const double least = std::max({std::abs(low), std::abs(high), logarithmic ? 1.0 : 1e-150}) * 1e-9;
    if (high - low < least) {
      const double half = logarithmic ? 0.15 : std::max(std::abs(low) * 0.05, low == 0 ? 0.5 : least);
      low -= half, high += half;
    }
    const double margin = (high - low) * room;
    low -= margin, high += margin;
  }
  // What is far outside is kept where every reader of SVG can still count.
  double pixel(double value) const {
    return first + (last - first) * std::clamp((scale(value) - low) / (high - low), -100.0, 100.0);
  }

  struct Tick {
    double value = 0;
    std::string label = {};
  };

  std::vector<Tick> ticks(double target) const {
    return logarithmic && high - low >= 0.7 ? decades(target) : round_numbers(target);
  }

 private:
  static std::string number(double value, double step) {
    struct Unit {
      double size;
      const char* name;
    };
    if (value == 0 && step >= 1) return "0";
    const double size = std::max(std::abs(value), step);
    if (size >= 1e15 || step < 1e-6) return format_line("%.3g", value);
    const Unit unit = size >= 1e9   ? Unit{1e9, "G"}
                      : size >= 1e6 ? Unit{1e6, "M"}
                      : size >= 1e4 ? Unit{1e3, "k"}
                                    : Unit{1, ""};
    const int digits = std::max(0, static_cast<int>(std::ceil(-std::log10(step / unit.size) - 1e-9)));
    return format_line("%.*f%s", digits, value / unit.size, unit.name);
  }

  // 1, 2 and 5 times a power of ten apart.
  std::vector<Tick> round_numbers(double target) const {
    const double from = logarithmic ? std::pow(10, low) : low, to = logarithmic ? std::pow(10, high) : high;
    const double rough = (to - from) / target, power = std::pow(10, std::floor(std::log10(rough)));
    const double step = power * (rough <= power ? 1 : rough <= 2 * power ? 2 : rough <= 5 * power ? 5 : 10);
    std::vector<Tick> list;
    const double start = std::ceil(from / step);
    for (int i = 0; i < 100 && (start + i) * step <= to; ++i) {
      const double value = (start + i) * step + 0.0;  // no "-0"
      list.push_back({value, number(value, step)});
    }
    return list;
  }
  // Powers of ten, with 2 and 5 between them where there is room, or every second, third ... where there is none.
  std::vector<Tick> decades(double target) const {
    const int every = std::max(1, static_cast<int>(std::ceil((high - low) / target)));
    const bool between = high - low <= target / 3;
    std::vector<Tick> list;
    for (int power = static_cast<int>(std::floor(low)); power <= high; ++power) {
      if (power % every != 0) continue;
      for (const double factor : {1.0, 2.0, 5.0}) {
        const double value = factor * std::pow(10, power);
        if ((factor == 1 || between) && scale(value) >= low && scale(value) <= high)
          list.push_back({value, power < -4 ? format_line("%.0e", value) : number(value, std::pow(10, power))});
      }
    }
    return list;
  }
};

struct LineChartPicture {
  const LineChart& chart;
  double width, height;
  ChartAxis x{.logarithmic = chart.log_x}, y{.logarithmic = chart.log_y};
  bool empty = true;  // no point to draw, no mark
  std::string out = {};

  // Dark enough on white, and apart for most of those who do not see all colours.
  static constexpr std::array<const char*, 12> palette = {"#1f66b0", "#d1561b", "#2b8a4b", "#8b4bb3",
                                                          "#a87f00", "#0c8a99", "#c03a78", "#5a6068",
                                                          "#111111", "#7a3b12", "#7fb000", "#4fb0ea"};
  static constexpr std::size_t most_name = 34;  // letters of a name in the legend
  static constexpr double top = 44, bottom = 54, line_height = 18, character = 6.6;

  static std::string text_of(std::string_view text, std::size_t most) {
    return escape_markup(shorten(visible_text(text), most));
  }
  void text(double at_x, double at_y, std::string_view attributes, std::string_view escaped) {
    out += format_line("<text x=\"%.1f\" y=\"%.1f\" ", at_x, at_y);
    out.append(attributes).append(">").append(escaped).append("</text>\n");
  }

  std::vector<const char*> colours() const {
    std::map<std::string, std::size_t> groups;
    std::vector<const char*> list;
    std::size_t next = 0;
    for (const LineSeries& series : chart.series) {
      std::size_t index = next;
      if (!series.group.empty()) index = groups.try_emplace(series.group, next).first->second;
      if (index == next) ++next;
      list.push_back(palette[index % palette.size()]);
    }
    return list;
  }

  bool shows(double at_x, double at_y) const { return x.shows(at_x) && y.shows(at_y); }

  void measure() {
    for (const LineSeries& series : chart.series)
      for (std::size_t i = 0; i < series.x.size(); ++i) {
        const auto point = [&](double value) {
          if (shows(series.x[i], value)) x.include(series.x[i]), y.include(value);
        };
        point(series.y[i]);
        if (!series.low.empty()) point(series.low[i]), point(series.high[i]);
      }
    for (const LineChart::Mark& mark : chart.vertical) x.include(mark.at);
    for (const LineChart::Mark& mark : chart.horizontal) y.include(mark.at);
    empty = x.low > x.high;
    x.settle(0.02), y.settle(0.05);
    if (chart.y_low && y.shows(*chart.y_low) && y.scale(*chart.y_low) < y.high) y.low = y.scale(*chart.y_low);
    if (chart.y_high && y.shows(*chart.y_high) && y.scale(*chart.y_high) > y.low) y.high = y.scale(*chart.y_high);
    y.settle(0);
  }

  std::string points(const LineSeries& series) const {
    std::string path;
    bool drawing = false;
    for (std::size_t i = 0; i < series.x.size(); ++i) {
      if (!shows(series.x[i], series.y[i])) {
        drawing = false;
        continue;
      }
      path += format_line("%s%.2f %.2f", drawing ? "L" : "M", x.pixel(series.x[i]), y.pixel(series.y[i]));
      // A point alone is a line of no length, which round ends make a dot.
      const bool alone = !drawing && (i + 1 == series.x.size() || !shows(series.x[i + 1], series.y[i + 1]));
      if (alone) path += "h0";
      drawing = true;
    }
    return path;
  }

  void band(const LineSeries& series, const char* colour) {
    for (std::size_t i = 0; i < series.low.size();) {
      const auto closed = [&](std::size_t at) {
        return shows(series.x[at], series.low[at]) && shows(series.x[at], series.high[at]);
      };
      std::size_t end = i;
      while (end < series.low.size() && closed(end)) ++end;
      if (end > i) {
        std::string path;
        for (std::size_t k = i; k < end; ++k)
          path += format_line("%s%.2f %.2f", k == i ? "M" : "L", x.pixel(series.x[k]), y.pixel(series.high[k]));
        for (std::size_t k = end; k-- > i;)
          path += format_line("L%.2f %.2f", x.pixel(series.x[k]), y.pixel(series.low[k]));
        out.append("<path fill=\"").append(colour).append("\" opacity=\".15\" d=\"").append(path).append("z\"/>\n");
      }
      i = end + 1;
    }
  }

  void line(const LineSeries& series, const char* colour) {
    const std::string path = points(series);
    if (path.empty()) return;
    out.append("<path fill=\"none\" stroke-linecap=\"round\" stroke-linejoin=\"round\" stroke=\"").append(colour);
    out.append(series.faint ? "\" stroke-width=\"1\" opacity=\".4\"" : "\" stroke-width=\"2\"");
    if (series.dashed) out += " stroke-dasharray=\"5 4\"";
    out.append(" d=\"").append(path).append("\"/>\n");
    if (!series.markers) return;
    out.append("<g fill=\"").append(colour).append(series.faint ? "\" opacity=\".4\">" : "\">");
    for (std::size_t i = 0; i < series.x.size(); ++i)
      if (shows(series.x[i], series.y[i]))
        out += format_line("<circle cx=\"%.2f\" cy=\"%.2f\" r=\"3\"/>", x.pixel(series.x[i]), y.pixel(series.y[i]));
    out += "</g>\n";
  }

  std::string draw() {
    const std::vector<const char*> colour = colours();
    measure();

    std::size_t longest_name = 0;
    for (const LineSeries& series : chart.series)
      longest_name = std::max(longest_name, std::min(series.name.size(), most_name));
    const double legend = longest_name == 0 ? 16 : 46 + character * static_cast<double>(longest_name);

    y.first = height - bottom, y.last = top;
    const auto y_ticks = y.ticks((height - top - bottom) / 60);
    std::size_t longest_label = 0;
    for (const ChartAxis::Tick& tick : y_ticks) longest_label = std::max(longest_label, tick.label.size());
    x.first = 38 + character * static_cast<double>(longest_label);
    x.last = std::max(x.first + 80, width - legend);
    const double left = x.first, right = x.last, floor = y.first;

    out = format_line("<svg xmlns=\"http://www.w3.org/2000/svg\" role=\"img\" width=\"%.0f\" height=\"%.0f\" ", width,
                      height);
    out +=
        format_line("viewBox=\"0 0 %.0f %.0f\" font-family=\"system-ui, sans-serif\" font-size=\"12\" ", width, height);
    const std::string title = text_of(chart.title, static_cast<std::size_t>(width / 8));
    out +=
        "fill=\"#333\">\n<title>" + title + "</title>\n<rect width=\"100%\" height=\"100%\" rx=\"6\" fill=\"#fff\"/>\n";
    text(left, 26, "font-size=\"15\" font-weight=\"600\" fill=\"#111\"", title);

    for (const ChartAxis::Tick& tick : y_ticks) {
      const double at = y.pixel(tick.value);
      out += format_line("<path stroke=\"#e3e3e3\" d=\"M%.1f %.1fH%.1f\"/>\n", left, at, right);
      text(left - 7, at + 4, "text-anchor=\"end\"", tick.label);
    }
    for (const ChartAxis::Tick& tick : x.ticks((right - left) / 80)) {
      const double at = x.pixel(tick.value);
      out += format_line("<path stroke=\"#e3e3e3\" d=\"M%.1f %.1fV%.1f\"/>\n", at, top, floor);
      text(at, floor + 17, "text-anchor=\"middle\"", tick.label);
    }
    out += format_line("<path fill=\"none\" stroke=\"#888\" d=\"M%.1f %.1fV%.1fH%.1f\"/>\n", left, top, floor, right);
    text((left + right) / 2, height - 14, "text-anchor=\"middle\"", text_of(chart.x_label, most_label(right - left)));
    const double middle = (top + floor) / 2;
    text(17, middle, format_line("text-anchor=\"middle\" transform=\"rotate(-90 17 %.1f)\"", middle),
         text_of(chart.y_label, most_label(floor - top)));

    // An svg inside the svg cuts what is outside the field.
    out +=
        format_line("<svg x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\" ", left, top, right - left, floor - top);
    out += format_line("viewBox=\"%.1f %.1f %.1f %.1f\">\n", left, top, right - left, floor - top);
    for (std::size_t i = 0; i < colour.size(); ++i) band(chart.series[i], colour[i]);
    for (const bool faint : {true, false})
      for (std::size_t i = 0; i < colour.size(); ++i)
        if (chart.series[i].faint == faint) line(chart.series[i], colour[i]);
    out += "</svg>\n";
    marks();

    legend_of(colour, right);
    if (empty) text((left + right) / 2, middle, "text-anchor=\"middle\"", "no data");
    return std::move(out) + "</svg>\n";
  }

  // Many names stand closer; of more than fit even so, the last line says how many are not there.
  void legend_of(const std::vector<const char*>& colour, double right) {
    std::size_t left_over = 0;
    for (const LineSeries& series : chart.series) left_over += !series.name.empty();
    const double room = height - 8 - top;
    const double row = std::clamp(room / static_cast<double>(std::max<std::size_t>(left_over, 1)), 9.0, line_height);
    const std::string size = format_line("font-size=\"%.1f\"", std::min(12.0, row));
    double at = top + row / 2;
    for (std::size_t i = 0; i < colour.size(); ++i) {
      const LineSeries& series = chart.series[i];
      if (series.name.empty()) continue;
      const bool last_row = at + row > height - 8;
      if (last_row && left_over > 1) {
        text(right + 14, at + row / 4, size, format_line("… %zu more", left_over));
        return;
      }
      --left_over;
      out += format_line("<path stroke-width=\"%d\" stroke=\"%s\" %s d=\"M%.1f %.1fh18\"/>\n", series.faint ? 1 : 2,
                         colour[i], series.dashed ? "stroke-dasharray=\"5 4\"" : "", right + 14, at);
      text(right + 38, at + row / 4, size, text_of(series.name, most_name));
      at += row;
    }
  }

  static std::size_t most_label(double pixels) { return static_cast<std::size_t>(pixels / character); }

  // Lines across the field; their labels keep inside it.
  void marks() {
    constexpr const char* style = "stroke=\"#333\" stroke-dasharray=\"2 3\"";
    const std::string halo = "stroke=\"#fff\" stroke-width=\"3\" paint-order=\"stroke\"";
    double label_y = top + 12;
    for (const LineChart::Mark& mark : chart.vertical) {
      if (!x.shows(mark.at)) continue;
      const double at = x.pixel(mark.at);
      const bool right_half = at > (x.first + x.last) / 2;
      out += format_line("<path %s d=\"M%.1f %.1fV%.1f\"/>\n", style, at, top, y.first);
      text(at + (right_half ? -5 : 5), label_y, right_half ? halo + " text-anchor=\"end\"" : halo,
           text_of(mark.label, 40));
      label_y = std::min(label_y + 15, y.first - 4);
    }
    for (const LineChart::Mark& mark : chart.horizontal) {
      const double at = y.shows(mark.at) ? y.pixel(mark.at) : -1;
      if (at < top || at > y.first) continue;
      out += format_line("<path %s d=\"M%.1f %.1fH%.1f\"/>\n", style, x.first, at, x.last);
      text(x.last - 4, at + (at < top + 16 ? 13 : -4), halo + " text-anchor=\"end\"", text_of(mark.label, 40));
    }
  }
};

inline void require_whole_series(const LineChart& chart, std::string_view operation) {
  for (const LineSeries& series : chart.series) {
    const bool whole = series.x.size() == series.y.size() && series.low.size() == series.high.size() &&
                       (series.low.empty() || series.low.size() == series.x.size());
    if (!whole)
      throw Error(operation, "series '" + visible_text(series.name) + "'",
                  "as many x as y, low and high as many or none",
                  std::to_string(series.x.size()) + " x, " + std::to_string(series.y.size()) + " y, " +
                      std::to_string(series.low.size()) + " low, " + std::to_string(series.high.size()) + " high");
  }
}

}  // namespace detail

// A file for a browser or a page, on its own light ground. Errors: a series with other numbers of x than of y, or of
// low than of high; a width below 320 or a height below 200.
inline std::string line_chart_svg(const LineChart& chart, int width = 860, int height = 520) {
  detail::require_whole_series(chart, "line_chart_svg");
  require(width >= 320, "line_chart_svg", "width", "at least 320", width);
  require(height >= 200, "line_chart_svg", "height", "at least 200", height);
  return detail::LineChartPicture{
      .chart = chart, .width = static_cast<double>(width), .height = static_cast<double>(height)}
      .draw();
}

// A field of a CSV file: in quotes where it must be.
inline std::string csv_field(std::string_view text) {
  if (text.find_first_of(",\"\r\n") == text.npos) return std::string(text);
  std::string quoted = "\"";
  for (const char c : text) quoted += c == '"' ? std::string("\"\"") : std::string(1, c);
  return quoted + "\"";
}

// series,x,y,low,high: a line a point, those that cannot be drawn included. Errors: as of the picture's series.
inline std::string line_chart_csv(const LineChart& chart) {
  detail::require_whole_series(chart, "line_chart_csv");
  std::string out = "series," + csv_field(chart.x_label) + "," + csv_field(chart.y_label) + ",low,high\n";
  for (const LineSeries& series : chart.series)
    for (std::size_t i = 0; i < series.x.size(); ++i) {
      out += csv_field(series.name) + detail::format_line(",%.9g,%.9g,", series.x[i], series.y[i]);
      out += (series.low.empty() ? "," : detail::format_line("%.9g,%.9g", series.low[i], series.high[i])) + "\n";
    }
  return out;
}

}  // namespace rbar
