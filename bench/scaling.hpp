// What the programs that measure growth share: options, and their tables as text, CSV and charts.
#pragma once

#include "rbar/audit/line_chart.hpp"
#include "rbar/core/error.hpp"
#include "rbar/io/file.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <sstream>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace rbar::bench {

// `--name value` pairs, each of them known. Errors: an unknown name, a name without a value.
struct Options {
  std::vector<std::pair<std::string, std::string>> values;  // with their defaults

  void read(int argc, char** argv) {
    for (int i = 1; i < argc; i += 2) {
      const std::string_view name = argv[i];
      const auto known = std::find_if(values.begin(), values.end(), [&](auto& v) { return "--" + v.first == name; });
      require(known != values.end() && i + 1 < argc, "options", name, usage(), "no such option, or no value");
      known->second = argv[i + 1];
    }
  }
  std::string usage() const {
    std::string text;
    for (const auto& [name, value] : values) text += " --" + name + " " + (value.empty() ? "''" : value);
    return text;
  }
  const std::string& operator[](std::string_view name) const {
    return std::find_if(values.begin(), values.end(), [&](auto& v) { return v.first == name; })->second;
  }
  double number(std::string_view name) const { return std::atof((*this)[name].c_str()); }
  long count(std::string_view name) const { return std::atol((*this)[name].c_str()); }
  // The parts of "a,b".
  std::vector<std::string> list(std::string_view name) const {
    std::vector<std::string> parts(1);
    for (const char c : (*this)[name])
      if (c == ',')
        parts.emplace_back();
      else
        parts.back().push_back(c);
    if (parts.back().empty()) parts.pop_back();
    return parts;
  }
  // Whether a list asks for `item` by a part of its name; an empty one asks for everything.
  bool wants(std::string_view name, std::string_view item) const {
    const auto parts = list(name);
    return parts.empty() || std::any_of(parts.begin(), parts.end(), [&](const std::string& part) {
             return item.find(part) != std::string_view::npos;
           });
  }
};

// The power b of y ≈ a·x^b through the last `points` points, by least squares of the logarithms.
inline double slope(const LineSeries& series, std::size_t points) {
  const std::size_t n = std::min(points, series.x.size()), first = series.x.size() - n;
  if (n < 2) return std::nan("");
  double mean_x = 0, mean_y = 0, xy = 0, xx = 0;
  for (std::size_t i = first; i < series.x.size(); ++i) {
    mean_x += std::log(series.x[i]) / static_cast<double>(n);
    mean_y += std::log(series.y[i]) / static_cast<double>(n);
  }
  for (std::size_t i = first; i < series.x.size(); ++i) {
    const double x = std::log(series.x[i]) - mean_x;
    xy += x * (std::log(series.y[i]) - mean_y);
    xx += x * x;
  }
  return xy / xx;
}

// The lines of a CSV file without quotes, or of several one after another: cells of every line that does not begin with
// the header's first cell.
inline std::vector<std::vector<std::string>> read_rows(const std::string& path, std::string_view header) {
  std::ifstream file(path);
  require(file.good(), "read_rows", "file", "one that can be read", path);
  std::vector<std::vector<std::string>> rows;
  for (std::string line; std::getline(file, line);) {
    if (line.empty() || line.starts_with(header.substr(0, header.find(',')))) continue;
    auto& cells = rows.emplace_back();
    for (std::istringstream stream(line + ","); std::getline(stream, line, ',');) cells.push_back(line);
    const auto expected = std::count(header.begin(), header.end(), ',') + 1;
    require(static_cast<std::ptrdiff_t>(cells.size()) == expected, "read_rows", path, expected, cells.size());
  }
  return rows;
}

inline void write_text(const std::string& path, std::string_view text) {
  write_file_atomically(path, text);
  std::printf("wrote %s\n", path.c_str());
}

}  // namespace rbar::bench
