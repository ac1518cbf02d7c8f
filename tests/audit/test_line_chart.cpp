// The line chart: where points land, what cannot be drawn, and whether the file is well formed whatever it is given.
#include "rbar/audit/line_chart.hpp"

#include "support/catch.hpp"

#include <cstdlib>
#include <limits>
#include <random>
#include <set>

namespace {

using rbar::line_chart_csv;
using rbar::line_chart_svg;
using rbar::LineChart;
using rbar::LineSeries;

constexpr double none = std::numeric_limits<double>::quiet_NaN();
constexpr double infinity = std::numeric_limits<double>::infinity();

std::size_t count(const std::string& text, const std::string& word) {
  std::size_t times = 0;
  for (std::size_t at = text.find(word); at != text.npos; at = text.find(word, at + word.size())) ++times;
  return times;
}

// Do all elements close in their order, with every attribute in quotes? Enough XML for what a chart writes.
bool well_formed(const std::string& file) {
  for (std::size_t at = file.find('&'); at != file.npos; at = file.find('&', at + 1)) {
    const std::string name = file.substr(at + 1, file.find(';', at) - at - 1);
    if (name != "amp" && name != "lt" && name != "gt" && name != "quot" && name.rfind("#", 0) != 0) return false;
  }
  std::vector<std::string> open;
  for (std::size_t at = file.find('<'); at != file.npos; at = file.find('<', at)) {
    std::size_t end = at + 1;
    for (bool quoted = false; end < file.size() && (quoted || file[end] != '>'); ++end) {
      if (file[end] == '"') quoted = !quoted;
      if (file[end] == '<') return false;
    }
    if (end == file.size()) return false;
    const std::string tag = file.substr(at + 1, end - at - 1), name = tag.substr(0, tag.find(' '));
    if (name[0] == '/') {
      if (open.empty() || "/" + open.back() != name) return false;
      open.pop_back();
    } else if (tag.back() != '/') {
      open.push_back(name);
    }
    at = end;
  }
  return open.empty();
}

struct Point {
  double x = 0, y = 0;
};

// The points of the n-th line that is drawn, in pixels; a gap is a point of NaN.
std::vector<Point> line(const std::string& svg, std::size_t n = 0) {
  std::size_t at = 0;
  for (std::size_t i = 0; i <= n; ++i) at = svg.find("stroke-linejoin", at) + 1;
  at = svg.find(" d=\"", at) + 4;
  const char* text = svg.c_str() + at;
  std::vector<Point> points;
  while (*text == 'M' || *text == 'L') {
    if (*text == 'M' && !points.empty()) points.push_back({none, none});
    char* end = nullptr;
    Point point;
    point.x = std::strtod(text + 1, &end);
    point.y = std::strtod(end, &end);
    points.push_back(point);
    text = end;
    if (std::string(text, 2) == "h0") text += 2;
  }
  return points;
}

std::string colour(const std::string& svg, std::size_t n) {
  std::size_t at = 0;
  for (std::size_t i = 0; i <= n; ++i) at = svg.find("stroke-linejoin", at) + 1;
  return svg.substr(svg.find('#', at), 7);
}

}  // namespace

TEST_CASE("a line chart is linear in its axes", "[line_chart]") {
  const auto points = line(line_chart_svg({.series = {{.x = {0, 1, 4}, .y = {10, 30, 20}}}}));
  REQUIRE(points.size() == 3);
  REQUIRE((points[1].x - points[0].x) * 4 == Approx(points[2].x - points[0].x).epsilon(1e-3));
  REQUIRE((points[1].y - points[0].y) == Approx(2 * (points[2].y - points[0].y)).epsilon(1e-3));
  REQUIRE(points[1].y < points[0].y);  // up is more

  const auto logarithmic =
      line(line_chart_svg({.log_x = true, .log_y = true, .series = {{.x = {1, 10, 1000}, .y = {1e-3, 1, 1e3}}}}));
  REQUIRE((logarithmic[1].x - logarithmic[0].x) * 3 == Approx(logarithmic[2].x - logarithmic[0].x).epsilon(1e-3));
  REQUIRE((logarithmic[1].y - logarithmic[0].y) * 2 == Approx(logarithmic[2].y - logarithmic[0].y).epsilon(1e-3));
}

TEST_CASE("points that cannot be drawn are gaps", "[line_chart]") {
  const std::string svg = line_chart_svg({.series = {{.x = {1, 2, 3, 4, 5, 6}, .y = {1, 2, none, 4, infinity, 6}}}});
  const auto points = line(svg);
  REQUIRE(points.size() == 6);  // four points, two gaps
  REQUIRE(std::isnan(points[2].x));
  REQUIRE(std::isnan(points[4].x));
  REQUIRE(count(svg, "h0") == 2);  // 4 and 6 stand alone: dots
  REQUIRE(count(svg, "nan") + count(svg, "inf") == 0);

  const LineSeries zero{.x = {0, 1, 10}, .y = {5, 6, 7}};
  REQUIRE(line(line_chart_svg({.series = {zero}})).size() == 3);
  REQUIRE(line(line_chart_svg({.log_x = true, .series = {zero}})).size() == 2);
}

TEST_CASE("a chart of nothing says so", "[line_chart]") {
  for (const LineChart& chart : {LineChart{}, LineChart{.series = {{.name = "none"}}},
                                 LineChart{.series = {{.x = {1, none}, .y = {none, 2}}}}}) {
    const std::string svg = line_chart_svg(chart);
    REQUIRE_THAT(svg, ContainsText("no data"));
    REQUIRE(well_formed(svg));
    REQUIRE(count(svg, "nan") + count(svg, "inf") == 0);
  }
  REQUIRE(count(line_chart_svg({.series = {{.x = {1}, .y = {1}}}}), "no data") == 0);
}

TEST_CASE("colours, the legend and what lies in front", "[line_chart]") {
  const LineSeries mean{.name = "torus", .x = {1, 2}, .y = {1, 2}, .group = "torus"};
  LineSeries single = mean, other{.name = "baseline", .x = {1, 2}, .y = {3, 4}, .dashed = true};
  single.name.clear();
  single.faint = true;
  const std::string svg = line_chart_svg({.series = {mean, single, other}});
  REQUIRE(colour(svg, 0) == colour(svg, 1));  // the faint one is drawn first
  REQUIRE(colour(svg, 1) != colour(svg, 2));
  REQUIRE(svg.find("opacity=\".4\"") < svg.find("stroke-width=\"2\""));
  REQUIRE(count(svg, ">torus</text>") == 1);
  REQUIRE(count(svg, ">baseline</text>") == 1);
  REQUIRE(count(svg, "stroke-dasharray=\"5 4\"") == 2);  // the line and its place in the legend
}

TEST_CASE("twelve series have twelve colours, and a legend has room for many names", "[line_chart]") {
  LineChart chart;
  const auto add_until = [&chart](std::size_t many) {
    while (chart.series.size() < many)
      chart.series.push_back({.name = "run " + std::to_string(chart.series.size()) + ".", .x = {1, 2}, .y = {1, 2}});
  };
  add_until(12);
  const std::string twelve = line_chart_svg(chart);
  std::set<std::string> colours;
  for (std::size_t i = 0; i < 12; ++i) colours.insert(colour(twelve, i));
  REQUIRE(colours.size() == 12);

  add_until(40);
  const std::string forty = line_chart_svg(chart);
  for (const LineSeries& series : chart.series) REQUIRE(count(forty, ">" + series.name + "</text>") == 1);
  REQUIRE(count(forty, "more</text>") == 0);

  add_until(100);
  const std::string hundred = line_chart_svg(chart);
  const std::size_t shown = count(hundred, ">run ");
  REQUIRE(shown > 40);
  REQUIRE_THAT(hundred, ContainsText("… " + std::to_string(100 - shown) + " more</text>"));
  REQUIRE(well_formed(hundred));
}

TEST_CASE("bands, markers and reference lines", "[line_chart]") {
  LineChart chart{.series = {{.x = {1, 2, 3}, .y = {1, 2, 3}, .markers = true, .low = {0, 1, 2}, .high = {2, 3, 4}}}};
  chart.vertical = {{2.5, "K_c"}, {none, "nowhere"}};
  chart.horizontal = {{10, "above all"}};
  const std::string svg = line_chart_svg(chart);
  REQUIRE(count(svg, "<circle") == 3);
  REQUIRE(count(svg, "opacity=\".15\"") == 1);
  REQUIRE_THAT(svg, ContainsText(">K_c</text>"));
  REQUIRE_THAT(svg, !ContainsText("nowhere"));
  REQUIRE_THAT(svg, ContainsText(">above all</text>"));  // the axis reaches to it
  REQUIRE(well_formed(svg));

  chart.y_high = 5;  // now it does not
  REQUIRE_THAT(line_chart_svg(chart), !ContainsText("above all"));
  chart.y_high = -7;  // below all data: no such axis
  REQUIRE(well_formed(line_chart_svg(chart)));
}

TEST_CASE("ticks are round numbers inside the axis", "[line_chart]") {
  const std::string plain = line_chart_svg({.series = {{.x = {0, 50000}, .y = {1.2, 1.4}}}});
  for (const char* label : {">0<", ">10k<", ">50k<", ">1.25<", ">1.40<"}) REQUIRE_THAT(plain, ContainsText(label));
  const std::string decades = line_chart_svg({.log_x = true, .series = {{.x = {1e-3, 1e6}, .y = {-1, 1}}}});
  for (const char* label : {">0.001<", ">1<", ">100k<", ">-1.0<", ">0.0<"}) REQUIRE_THAT(decades, ContainsText(label));
}

TEST_CASE("a chart of whatever numbers and texts is well formed", "[line_chart]") {
  std::mt19937 random(7);
  const double hostile[] = {0,         -0.0,   1,         -1,    1e-300, 1e300, -1e300, none,    infinity,
                            -infinity, 5e-324, 1 + 1e-16, 1e149, -1e149, 1e-12, 3,      1e15 + 1};
  const std::string words[] = {"", "<script>", "a & \"b\"", "\x01\xff", "]]>", "naïve", std::string(500, 'w')};
  const auto pick = [&](const auto& list) { return list[random() % std::size(list)]; };
  for (int i = 0; i < 2000; ++i) {
    INFO("case " << i);
    LineChart chart{.title = pick(words), .x_label = pick(words), .y_label = pick(words)};
    chart.log_x = random() % 2, chart.log_y = random() % 2;
    for (std::size_t n = random() % 3; n > 0; --n) {
      LineSeries series{.name = pick(words), .group = pick(words)};
      series.faint = random() % 2, series.dashed = random() % 2, series.markers = random() % 2;
      const bool band = random() % 2;
      for (std::size_t k = random() % 5; k > 0; --k) {
        series.x.push_back(pick(hostile)), series.y.push_back(pick(hostile));
        if (band) series.low.push_back(pick(hostile)), series.high.push_back(pick(hostile));
      }
      chart.series.push_back(series);
    }
    if (random() % 3 == 0) chart.vertical.push_back({pick(hostile), pick(words)});
    if (random() % 3 == 0) chart.horizontal.push_back({pick(hostile), pick(words)});
    if (random() % 3 == 0) chart.y_low = pick(hostile);
    if (random() % 3 == 0) chart.y_high = pick(hostile);
    const std::string svg = line_chart_svg(chart, 320 + static_cast<int>(random() % 600));
    const bool fine = well_formed(svg) && svg.find("<script") == svg.npos && svg.find('\x01') == svg.npos;
    if (!fine) FAIL(svg);
    if (count(svg, "nan") + count(svg, "inf") > 0) FAIL(svg);
    REQUIRE(count(line_chart_csv(chart), "\n") >= 1);
  }
}

TEST_CASE("a chart as CSV", "[line_chart]") {
  LineChart chart{.x_label = "K", .y_label = "R, mean"};
  chart.series = {{.name = "a \"b\"", .x = {1, 2}, .y = {0.5, none}},
                  {.name = "c", .x = {3}, .y = {4}, .low = {3.5}, .high = {4.5}}};
  const std::string csv = line_chart_csv(chart);
  REQUIRE(csv == "series,K,\"R, mean\",low,high\n\"a \"\"b\"\"\",1,0.5,,\n\"a \"\"b\"\"\",2,nan,,\nc,3,4,3.5,4.5\n");
}

TEST_CASE("line charts refuse broken series and sizes", "[line_chart]") {
  REQUIRE_THROWS_WITH(line_chart_svg({.series = {{.name = "s", .x = {1, 2}, .y = {1}}}}), ContainsText("2 x, 1 y"));
  REQUIRE_THROWS_WITH(line_chart_csv({.series = {{.x = {1}, .y = {1}, .low = {1}}}}), ContainsText("1 low, 0 high"));
  REQUIRE_THROWS_WITH(line_chart_svg({.series = {{.x = {1, 2}, .y = {1, 2}, .low = {1}, .high = {1}}}}),
                      ContainsText("1 low"));
  REQUIRE_THROWS_WITH(line_chart_svg({}, 100), ContainsText("width: expected at least 320, got 100"));
  REQUIRE_THROWS_WITH(line_chart_svg({}, 800, 10), ContainsText("height"));
}
