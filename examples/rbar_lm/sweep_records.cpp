#include "sweep_records.hpp"

#include "rbar/audit/line_chart.hpp"
#include "rbar/io/config_json.hpp"
#include "rbar/io/file.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <map>

namespace rbar_lm {
namespace {

namespace fs = std::filesystem;
using rbar::csv_field;
using rbar::LineChart;
using rbar::LineSeries;

constexpr double nan = std::numeric_limits<double>::quiet_NaN();

// A line of numbers, of which the first is the step; a column is NaN where nothing stands.
struct LogLine {
  Index step;
  std::array<double, 8> columns;
};

// The lines of a log (rbar::StepCsv), without its header. A last line without an end was cut short.
std::vector<LogLine> lines_of(const fs::path& path) {
  if (!fs::exists(path)) return {};
  const rbar::MappedFile file(path);
  std::string_view text = file.text();
  std::vector<LogLine> lines;
  for (std::size_t end = text.find('\n'); end != text.npos; end = text.find('\n')) {
    const std::string line(text.substr(0, end));
    text.remove_prefix(end + 1);
    char* at = nullptr;
    LogLine numbers{std::strtoll(line.c_str(), &at, 10), {}};
    if (at == line.c_str()) continue;
    numbers.columns.fill(nan);
    for (double& value : numbers.columns) {
      if (*at != ',') break;
      char* const start = ++at;
      value = std::strtod(start, &at);
      if (at == start) value = nan;
    }
    lines.push_back(numbers);
  }
  return lines;
}

// log.csv of rbar::CsvLog: loss, norm of the gradient, learning rate, tokens a second, validation.
void read_curve(const fs::path& path, RunRecord& record) {
  const Index tokens_per_step = record.tokens() / record.definition.train.config.steps;
  const Index stride = (record.definition.train.config.steps + 499) / 500;
  double seconds_per_token = 0, sum = 0;
  Index steps = 0, count = 0;
  for (const auto& [step, columns] : lines_of(path)) {
    const double loss = columns[0], tokens_per_second = columns[3], val_nats = columns[4];
    seconds_per_token += 1 / tokens_per_second;
    sum += loss;
    ++steps, ++count;
    if (step % stride != 0 && std::isnan(val_nats)) continue;
    record.curve.push_back({step, tokens_per_step * step, sum / static_cast<double>(count), val_nats});
    sum = 0, count = 0;
  }
  record.tokens_per_second = steps > 0 ? static_cast<double>(steps) / seconds_per_token : nan;
}

// phases.csv of rbar::PhaseLog, a line a layer: layer, R_mean, coupling, temperature, gate, ...
void read_phases(const fs::path& path, RunRecord& record) {
  double layers = 0;
  for (const auto& [step, columns] : lines_of(path)) {
    const double order_parameter = columns[1], gate = columns[4];
    if (record.phases.empty() || record.phases.back().step != step) record.phases.push_back({.step = step}), layers = 0;
    PhasePoint& mean = record.phases.back();
    ++layers;
    mean.order_parameter += (order_parameter - mean.order_parameter) / layers;
    mean.gate += (gate - mean.gate) / layers;
  }
}

std::string number(double value, const char* format = "%.9g") {
  return std::isnan(value) ? "nan" : rbar::detail::format_line(format, value);
}

struct MeanAndSpread {
  double mean = nan, spread = nan;
};
template <class Value>
MeanAndSpread mean_and_spread(const std::vector<const RunRecord*>& records, Value&& value) {
  const auto count = static_cast<double>(records.size());
  if (records.empty()) return {};
  double sum = 0, squares = 0;
  for (const RunRecord* record : records) sum += value(*record);
  for (const RunRecord* record : records) squares += std::pow(value(*record) - sum / count, 2);
  return {sum / count, records.size() > 1 ? std::sqrt(squares / (count - 1)) : nan};
}

std::string results_csv(const std::vector<RunRecord>& records) {
  std::string csv =
      "name,seed,model,parameters,lr,steps,tokens,val_nats,bits_per_byte,perplexity,tokens_per_s,data_digest,failure\n";
  for (const RunRecord& record : records) {
    if (!record.result && record.failure.empty()) continue;
    const RunDefinition& d = record.definition;
    const RunResult result = record.result.value_or(RunResult{nan, nan, nan, 0});
    csv += d.name + "," + std::to_string(d.seed) + "," + d.model + "," + std::to_string(d.parameters) + "," +
           short_number(record.learning_rate()) + "," + std::to_string(d.train.config.steps) + "," +
           std::to_string(record.tokens()) + "," + number(result.val_nats) + "," + number(result.bits_per_byte) + "," +
           number(result.perplexity.value_or(std::numeric_limits<double>::infinity())) + "," +
           number(record.tokens_per_second, "%.0f") + "," + d.data + "," + csv_field(record.failure) + "\n";
  }
  return csv;
}

std::string summary_csv(const std::vector<SummaryRow>& rows) {
  std::string csv =
      "name,model,parameters,lr,seeds,failed,val_nats,val_nats_spread,bits_per_byte,bits_per_byte_spread,perplexity,"
      "tokens_per_s,best\n";
  for (const SummaryRow& row : rows) {
    const RunDefinition& d = row.first->definition;
    csv += d.name + "," + d.model + "," + std::to_string(d.parameters) + "," +
           short_number(row.first->learning_rate()) + "," + std::to_string(row.finished.size()) + "," +
           std::to_string(row.failed) + "," + number(row.val_nats) + "," + number(row.val_spread, "%.3g") + "," +
           number(row.bits_per_byte) + "," + number(row.bits_spread, "%.3g") + "," + number(std::exp(row.val_nats)) +
           "," + number(row.tokens_per_second, "%.0f") + "," + (row.best ? "1" : "0") + "\n";
  }
  return csv;
}

std::string curves_csv(const std::vector<RunRecord>& records) {
  std::string csv = "name,lr,seed,step,tokens,train_nats,val_nats\n";
  for (const RunRecord& record : records) {
    const RunDefinition& d = record.definition;
    const std::string start = d.name + "," + short_number(record.learning_rate()) + "," + std::to_string(d.seed) + ",";
    for (const CurvePoint& point : record.curve)
      csv += start + std::to_string(point.step) + "," + std::to_string(point.tokens) + "," + number(point.train_nats) +
             "," + (std::isnan(point.val_nats) ? "" : number(point.val_nats)) + "\n";
  }
  return csv;
}

// The mean curve where all of these runs have a point.
LineSeries mean_curve(const std::vector<const RunRecord*>& records, double CurvePoint::*value) {
  std::map<Index, std::pair<double, std::size_t>> sums;
  for (const RunRecord* record : records)
    for (const CurvePoint& point : record->curve)
      if (std::isfinite(point.*value)) {
        auto& [sum, count] = sums[point.tokens];
        sum += point.*value, ++count;
      }
  LineSeries series;
  for (const auto& [tokens, total] : sums) {
    if (total.second != records.size()) continue;
    series.x.push_back(static_cast<double>(tokens));
    series.y.push_back(total.first / static_cast<double>(total.second));
  }
  return series;
}

// At most 60 points, each the mean of its neighbourhood: the losses of single batches are noise.
LineSeries smooth(const LineSeries& series) {
  const std::size_t block = (series.x.size() + 59) / 60;
  LineSeries result;
  for (std::size_t i = 0; i < series.x.size(); i += block) {
    const std::size_t end = std::min(i + block, series.x.size());
    const auto mean = [&](const std::vector<double>& values) {
      double sum = 0;
      for (std::size_t k = i; k < end; ++k) sum += values[k];
      return sum / static_cast<double>(end - i);
    };
    result.x.push_back(mean(series.x));
    result.y.push_back(mean(series.y));
  }
  return result;
}

std::vector<const RunRecord*> records_of(const std::vector<RunRecord>& records, const SummaryRow& row) {
  std::vector<const RunRecord*> list;
  for (const RunRecord& record : records)
    if (record.definition.name == row.first->definition.name && record.learning_rate() == row.first->learning_rate())
      list.push_back(&record);
  return list;
}

// The row whose curves stand for its name: the best one, or the first where there is none yet.
bool stands_for_its_name(const std::vector<SummaryRow>& rows, const SummaryRow& row) {
  const auto same_name = [&](const SummaryRow& other) {
    return other.first->definition.name == row.first->definition.name;
  };
  for (const SummaryRow& other : rows)
    if (same_name(other) && other.best) return &other == &row;
  return &*std::find_if(rows.begin(), rows.end(), same_name) == &row;
}

LineChart curves(const std::vector<RunRecord>& records, const std::vector<SummaryRow>& rows) {
  LineChart chart{.title = "Validation (thick: mean of the seeds, thin: each) and training (dashed)",
                  .x_label = "tokens",  // runs of the same windows may take them in steps of other sizes
                  .y_label = "nats per token"};
  // The first tenth of the training would leave no room for the rest.
  double highest = -1, first = -1;
  const auto add = [&](LineSeries series, const std::string& group) {
    for (std::size_t i = 0; i < series.x.size(); ++i) {
      if (i == 0) first = std::max(first, series.y[i]);
      if (series.x[i] >= series.x.back() / 10) highest = std::max(highest, series.y[i]);
    }
    series.group = group;
    chart.series.push_back(std::move(series));
  };
  for (const SummaryRow& row : rows) {
    if (!stands_for_its_name(rows, row)) continue;
    const std::string& name = row.first->definition.name;
    const auto runs = records_of(records, row);
    for (const RunRecord* run : runs) {
      if (runs.size() == 1) continue;
      LineSeries single = mean_curve({run}, &CurvePoint::val_nats);
      single.faint = true;
      add(std::move(single), name);
    }
    LineSeries training = smooth(mean_curve(runs, &CurvePoint::train_nats));
    training.faint = training.dashed = true;
    add(std::move(training), name);
    LineSeries mean = mean_curve(runs, &CurvePoint::val_nats);
    mean.name = name + ", lr " + short_number(row.first->learning_rate());
    add(std::move(mean), name);
  }
  if (highest > 0) chart.y_high = std::min(highest, first);
  return chart;
}

// Order parameter and gate over training, each a line for every seed.
LineChart phase_development(const std::vector<RunRecord>& records, const std::vector<SummaryRow>& rows) {
  LineChart chart{.title = "Order parameter R (lines) and gate (dashed), mean of the layers",
                  .x_label = "step",
                  .y_label = "",
                  .y_low = 0.0};
  for (const SummaryRow& row : rows) {
    if (!stands_for_its_name(rows, row)) continue;
    bool named = false;
    for (const RunRecord* run : records_of(records, row)) {
      if (run->phases.empty()) continue;
      LineSeries order{.group = run->definition.name}, gate{.group = run->definition.name, .dashed = true};
      for (const PhasePoint& point : run->phases) {
        order.x.push_back(static_cast<double>(point.step)), order.y.push_back(point.order_parameter);
        gate.x.push_back(static_cast<double>(point.step)), gate.y.push_back(point.gate);
      }
      if (!named) order.name = run->definition.name;
      named = true;
      chart.series.push_back(std::move(order));
      chart.series.push_back(std::move(gate));
    }
  }
  return chart;
}

LineChart learning_rates(const std::vector<SummaryRow>& rows) {
  LineChart chart{.title = "After training, by learning rate",
                  .x_label = "learning rate",
                  .y_label = "validation, nats per token",
                  .log_x = true};
  std::map<std::string, std::size_t> index;
  std::vector<const SummaryRow*> by_rate;
  for (const SummaryRow& row : rows) {
    const std::string& name = row.first->definition.name;
    if (index.try_emplace(name, chart.series.size()).second) chart.series.push_back({.name = name, .markers = true});
    by_rate.push_back(&row);
  }
  std::stable_sort(by_rate.begin(), by_rate.end(), [](const SummaryRow* a, const SummaryRow* b) {
    return a->first->learning_rate() < b->first->learning_rate();
  });
  for (const SummaryRow* each : by_rate) {
    const SummaryRow& row = *each;
    LineSeries& series = chart.series[index.at(row.first->definition.name)];
    const double spread = std::isnan(row.val_spread) ? 0 : row.val_spread;
    series.x.push_back(row.first->learning_rate());
    series.y.push_back(row.val_nats);
    series.low.push_back(row.val_nats - spread);
    series.high.push_back(row.val_nats + spread);
  }
  return chart;
}

}  // namespace

nlohmann::json RunDefinition::to_json() const {
  nlohmann::json json = rbar::to_json(*this);
  json["train"].erase("validate_every");  // no number of the run depends on these two
  json["train"].erase("save_every");
  json["config"] = config;
  return json;
}

RunDefinition RunDefinition::from_json(const std::string& source, nlohmann::json json) {
  RunDefinition definition;
  rbar::require(json.is_object() && json.contains("config"), "sweep", source, "the definition of a run",
                "something else");
  definition.config = json["config"];
  json.erase("config");
  rbar::detail::fields_from_json(source, json, definition);
  definition.train.validate(source);
  return definition;
}

Index RunRecord::tokens() const {
  const rbar::TrainingConfig& config = definition.train.config;
  return config.steps * config.batch_size * config.accumulation * config.window;
}

std::optional<RunRecord> read_record(const fs::path& folder) {
  if (!fs::exists(folder / "run.json")) return {};
  RunRecord record;
  const fs::path path = folder / "run.json";
  record.definition = RunDefinition::from_json(path.string(), rbar::read_json(path));
  if (fs::exists(folder / "result.json"))
    record.result = rbar::from_json<RunResult>(rbar::read_json(folder / "result.json"));
  if (fs::exists(folder / "failure.txt")) record.failure = rbar::MappedFile(folder / "failure.txt").text();
  read_curve(folder / "log.csv", record);
  read_phases(folder / "phases.csv", record);
  return record;
}

void require_same_data(const std::vector<RunDefinition>& runs) {
  std::map<std::uint64_t, const RunDefinition*> first;
  for (const RunDefinition& run : runs) {
    const RunDefinition& other = *first.try_emplace(run.seed, &run).first->second;
    rbar::require(run.data == other.data, "sweep", "data of " + run.name + ", seed " + std::to_string(run.seed),
                  "the windows of " + other.name + " in their order (digest " + other.data + ")",
                  "other windows (" + run.data + "): batch, accumulation, context, steps and text must be the same");
  }
}

std::vector<SummaryRow> summarise(const std::vector<RunRecord>& records, std::size_t seeds) {
  std::vector<SummaryRow> rows;
  for (const RunRecord& record : records) {
    const auto same = [&](const SummaryRow& row) {
      return row.first->definition.name == record.definition.name &&
             row.first->learning_rate() == record.learning_rate();
    };
    auto row = std::find_if(rows.begin(), rows.end(), same);
    if (row == rows.end()) row = rows.insert(rows.end(), SummaryRow{.first = &record});
    if (record.result) row->finished.push_back(&record);
    if (!record.failure.empty()) ++row->failed;
  }
  for (SummaryRow& row : rows) {
    const auto nats = mean_and_spread(row.finished, [](const RunRecord& r) { return r.result->val_nats; });
    const auto bits = mean_and_spread(row.finished, [](const RunRecord& r) { return r.result->bits_per_byte; });
    row.val_nats = nats.mean, row.val_spread = nats.spread;
    row.bits_per_byte = bits.mean, row.bits_spread = bits.spread;
    row.tokens_per_second = mean_and_spread(row.finished, [](const RunRecord& r) { return r.tokens_per_second; }).mean;
  }
  const auto complete = [seeds](const SummaryRow& row) { return row.failed == 0 && row.finished.size() == seeds; };
  for (SummaryRow& row : rows) {
    const auto better = [&](const SummaryRow& other) {
      return other.first->definition.name == row.first->definition.name && complete(other) &&
             other.val_nats < row.val_nats;
    };
    row.best = complete(row) && std::none_of(rows.begin(), rows.end(), better);
  }
  return rows;
}

void write_report(const fs::path& out, const std::vector<RunRecord>& records, const std::vector<SummaryRow>& rows) {
  rbar::write_file_atomically(out / "results.csv", results_csv(records));
  rbar::write_file_atomically(out / "summary.csv", summary_csv(rows));
  rbar::write_file_atomically(out / "curves.csv", curves_csv(records));
  rbar::write_file_atomically(out / "curves.svg", line_chart_svg(curves(records, rows)));
  const LineChart phases = phase_development(records, rows);
  if (!phases.series.empty()) rbar::write_file_atomically(out / "phases.svg", line_chart_svg(phases));
  const LineChart by_rate = learning_rates(rows);
  const bool several = std::any_of(by_rate.series.begin(), by_rate.series.end(),
                                   [](const LineSeries& series) { return series.x.size() > 1; });
  if (several) rbar::write_file_atomically(out / "lr.svg", line_chart_svg(by_rate));
}

}  // namespace rbar_lm
