#include "sweep.hpp"

#include "any_model.hpp"
#include "sweep_records.hpp"

#include "rbar/core/parallel.hpp"
#include "rbar/io/checkpoint.hpp"
#include "rbar/io/file.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <exception>
#include <map>
#include <mutex>
#include <string_view>
#include <system_error>
#include <tuple>
#include <utility>

#if RBAR_POSIX_FILES
#include <fcntl.h>
#include <sys/file.h>
#endif

namespace rbar_lm {
namespace {

namespace fs = std::filesystem;

// Keeps other processes from a run until it is destroyed or the process ends; where files have no locks, nothing does.
class RunLock {
 public:
#if RBAR_POSIX_FILES
  explicit RunLock(const fs::path& folder) : file_(folder / "lock", O_RDWR | O_CREAT, 0666) {
    held_ = file_ && ::flock(file_.get(), LOCK_EX | LOCK_NB) == 0;
  }
#else
  explicit RunLock(const fs::path&) : held_(true) {}
#endif
  bool held() const { return held_; }

 private:
#if RBAR_POSIX_FILES
  rbar::detail::FileDescriptor file_;
#endif
  bool held_;
};

bool is_asked_for(const PlannedRun& run, const std::vector<std::string>& only) {
  return only.empty() || std::find(only.begin(), only.end(), run.name) != only.end() ||
         std::find(only.begin(), only.end(), run.folder_name()) != only.end();
}

// Which members differ, in words; empty if none does.
std::string difference_between(const std::string& where, const nlohmann::json& ours, const nlohmann::json& stored) {
  try {
    rbar::detail::require_same_config(where, ours.flatten(), stored.flatten());
    return {};
  } catch (const rbar::Error& error) {
    const std::string_view message = error.what();
    return std::string(message.substr(message.find(": ") + 2));  // without the name of that function
  }
}

// Digest of what Trainer shows a model with this seed, window after window, and of the validation tokens.
std::string data_digest(const Corpus& corpus, const TrainingOptions& options) {
  const std::uint64_t windows = options.windows();
  const Index length = options.config.window;
  constexpr std::uint64_t most = 256;  // windows at a time
  std::string sums;
  const auto add = [&sums](const rbar::Token* tokens, Index count) {
    sums += rbar::detail::checksum(std::as_bytes(std::span(tokens, static_cast<std::size_t>(count))));
  };
  rbar::RandomWindows order{.seed = options.config.seed};
  rbar::TokenBatch batch;
  while (order.drawn < windows) {
    const auto count = static_cast<Index>(std::min(most, windows - order.drawn));
    order.next(corpus.data.train(), count, length, batch);
    add(batch.inputs.data(), batch.inputs.size());
    add(batch.targets.data(), batch.targets.size());
  }
  const rbar::TokenSpan validation = validation_of(corpus, options);
  add(validation.data(), static_cast<Index>(validation.size()));
  return rbar::detail::checksum(std::as_bytes(std::span(sums)));
}

class Sweep {
 public:
  Sweep(const SweepPlan& plan, const Arguments& a)
      : plan_(plan),
        a_(a),
        text_(read_text(plan.text)),
        corpus_(make_tokenizer(plan.tokenizer, text_, plan.bpe_vocabulary, plan.bpe_merges), text_) {
    std::map<std::tuple<std::uint64_t, std::uint64_t, Index, Index>, std::string> digests;
    for (const PlannedRun& run : plan_.runs) {
      const rbar::TrainingConfig& config = run.training.config;
      std::string& digest = digests[{config.seed, run.training.windows(), config.window, run.training.validate_tokens}];
      if (digest.empty()) digest = data_digest(corpus_, run.training);
      definitions_.push_back(define(run, digest));
    }
    require_same_data(definitions_);
    for (std::size_t i = 0; i < definitions_.size(); ++i) {
      std::error_code ignored;  // another process may be at it
      fs::remove_all(trash(i), ignored);
      check_folder(i);
    }
  }

  // All runs asked for that have no result yet. Returns how many failed.
  int train() {
    std::vector<std::size_t> open;
    std::size_t asked = 0;
    for (std::size_t i = 0; i < plan_.runs.size(); ++i) {
      if (!is_asked_for(plan_.runs[i], a_.only)) continue;
      ++asked;
      if (!fs::exists(folder(i) / "result.json")) open.push_back(i);
    }
    std::fprintf(stderr, "%zu runs, %zu of them finished before\n", asked, asked - open.size());
    if (a_.jobs == 1) {
      for (const std::size_t i : open) attempt(i);
    } else {
      // Inside the pool's loop the loops of the models run on their own thread.
      rbar::set_num_threads(a_.jobs);
      rbar::parallel_for(static_cast<Index>(open.size()), 1,
                         [&](Index begin, Index) { attempt(open[static_cast<std::size_t>(begin)]); });
    }
    return failed_;
  }

 private:
  fs::path folder(std::size_t i) const { return run_folder(a_.out, plan_.runs[i]); }
  fs::path trash(std::size_t i) const { return folder(i).string() + ".trash"; }  // no run is called so

  std::unique_ptr<AnyModel> create(const PlannedRun& run) const {
    return fresh_model(run.model, run.config, corpus_, run.training.config.window, run.training.config.seed);
  }

  RunDefinition define(const PlannedRun& run, const std::string& digest) const {
    RunDefinition definition;
    // Runs of one name lie side by side, and differ in their seed and learning rate alone.
    if (!definitions_.empty() && definitions_.back().name == run.name) {
      definition = definitions_.back();
      definition.data = digest;
      definition.seed = run.training.config.seed;
      definition.train = run.training;
      return definition;
    }
    const auto model = create(run);
    rbar::require(model->longest_context() >= run.training.config.window, "sweep", run.name + ": max_seq_len",
                  "at least the context, " + std::to_string(run.training.config.window), model->longest_context());
    definition.name = run.name;
    definition.model = model->family();
    definition.tokenizer = plan_.tokenizer;
    definition.data = digest;
    definition.parameters = count_parameters(*model);
    definition.seed = run.training.config.seed;
    definition.train = run.training;
    definition.config = model->config();
    return definition;
  }

  // A folder may hold this run, or nothing: what the plan changed since is trained anew, if that is allowed.
  void check_folder(std::size_t i) const {
    const std::string difference = difference_to_folder(i);
    if (difference.empty()) return;
    if (!a_.allow_changes) throw rbar::Error("sweep: " + difference + "; --allow-changes trains it anew");
    const RunLock lock(folder(i));
    rbar::require(lock.held(), "sweep", folder(i).string(), "a run that nobody trains", "a lock");
    fs::rename(folder(i), trash(i));  // at once: half a run is never taken for one
    fs::remove_all(trash(i));
  }

  // Empty if the folder holds this run, or nothing. Errors: a run.json that cannot be read.
  std::string difference_to_folder(std::size_t i) const {
    const fs::path path = folder(i) / "run.json";
    if (!fs::exists(path)) return {};
    const nlohmann::json stored = rbar::read_json(path);
    rbar::require(stored.is_object(), "sweep", path.string(), "the definition of a run", stored.type_name());
    return difference_between(path.string(), definitions_[i].to_json(), stored);
  }

  void attempt(std::size_t i) noexcept {
    const std::string name = plan_.runs[i].folder_name();
    try {
      fs::create_directories(folder(i));
      const RunLock lock(folder(i));
      if (!lock.held()) return say(name + ": another process trains it");
      say(name + ": starts");
      const RunResult result = train_run(i);
      say(name + rbar::detail::format_line(": %.4f nats, %.4f bits a byte", result.val_nats, result.bits_per_byte));
    } catch (const std::exception& error) {
      note_failure(i, name, error.what());
    }
  }

  RunResult train_run(std::size_t i) {
    const PlannedRun& run = plan_.runs[i];
    // Another process may have begun it since this one looked.
    if (const std::string difference = difference_to_folder(i); !difference.empty()) throw rbar::Error(difference);
    fs::remove(folder(i) / "failure.txt");
    remove_half_written(folder(i));
    rbar::write_json(folder(i) / "run.json", definitions_[i].to_json());
    const bool resume = fs::exists(folder(i) / "checkpoint.safetensors");
    const auto model = resume ? load_model(folder(i)) : create(run);
    const std::string difference = difference_between(folder(i).string(), definitions_[i].config, model->config());
    if (!difference.empty()) throw rbar::Error(difference);
    TrainingOptions options = run.training;
    const Index twentieth = (options.config.steps + 19) / 20;
    if (options.validate_every == 0) options.validate_every = twentieth;
    if (options.save_every == 0) options.save_every = twentieth;
    const TrainingResult trained = rbar_lm::train(
        *model, corpus_, options,
        {.folder = folder(i), .csv = folder(i) / "log.csv", .resume = resume, .quiet = a_.quiet || a_.jobs > 1});
    rbar::require(trained.windows == options.windows(), "sweep", run.folder_name() + ": windows", options.windows(),
                  trained.windows);
    const rbar::Evaluation& e = trained.validation;
    RunResult result{e.nats, e.bits_per_byte, {}, e.predicted_tokens};
    if (std::isfinite(e.perplexity)) result.perplexity = e.perplexity;
    rbar::write_json(folder(i) / "result.json", rbar::to_json(result));
    return result;
  }

  // What writers leave that die before they rename it.
  static void remove_half_written(const fs::path& folder) {
    std::vector<fs::path> leftovers;
    for (const fs::directory_entry& entry : fs::directory_iterator(folder))
      if (entry.path().extension().string().starts_with(".tmp")) leftovers.push_back(entry.path());
    for (const fs::path& path : leftovers) fs::remove(path);
  }

  void note_failure(std::size_t i, const std::string& name, const std::string& why) noexcept {
    try {
      say(name + ": fails: " + why);
      rbar::write_file_atomically(folder(i) / "failure.txt", why);
    } catch (const std::exception& error) {
      std::fprintf(stderr, "%s\n", error.what());
    }
    const std::lock_guard lock(mutex_);
    ++failed_;
  }

  void say(const std::string& line) {
    const std::lock_guard lock(mutex_);
    if (!a_.quiet) std::fprintf(stderr, "%s\n", line.c_str());
  }

  const SweepPlan& plan_;
  const Arguments& a_;
  std::string text_;
  Corpus corpus_;
  std::vector<RunDefinition> definitions_;
  std::mutex mutex_;
  int failed_ = 0;
};

void print_summary(const std::vector<SummaryRow>& rows) {
  std::printf("%-24s %10s %9s %5s  %-18s %-18s %9s\n", "", "parameters", "lr", "seeds", "validation, nats",
              "bits a byte", "tokens/s");
  for (const SummaryRow& row : rows) {
    const auto with_spread = [](double mean, double spread) {
      return rbar::detail::format_line("%.4f", mean) +
             (std::isnan(spread) ? std::string() : rbar::detail::format_line(" ± %.4f", spread));
    };
    const RunDefinition& run = row.first->definition;
    // "±" is two bytes: the widths of a line with it count one more.
    const int width = std::isnan(row.val_spread) ? 18 : 19;
    std::printf("%-24s %10lld %9s %5zu  %-*s %-*s %9.0f%s%s\n", run.name.c_str(),
                static_cast<long long>(run.parameters), short_number(row.first->learning_rate()).c_str(),
                row.finished.size(), width, with_spread(row.val_nats, row.val_spread).c_str(), width,
                with_spread(row.bits_per_byte, row.bits_spread).c_str(), row.tokens_per_second,
                row.best ? "  best" : "",
                row.failed > 0 ? ("  " + std::to_string(row.failed) + " failed").c_str() : "");
  }
}

}  // namespace

void require_known_runs(const SweepPlan& plan, const std::vector<std::string>& only) {
  std::string names;
  for (std::size_t i = 0; i < plan.runs.size(); ++i)
    if (i == 0 || plan.runs[i].name != plan.runs[i - 1].name) names += (i == 0 ? "" : ", ") + plan.runs[i].name;
  for (const std::string& name : only)
    rbar::require(std::any_of(plan.runs.begin(), plan.runs.end(),
                              [&](const PlannedRun& run) { return is_asked_for(run, {name}); }),
                  "arguments", "--only", "runs of the plan, by name or folder (" + names + ")", name);
}

int run_sweep(const SweepPlan& plan, const Arguments& a) {
  require_known_runs(plan, a.only);
  int failed = 0;
  if (!a.report) failed = Sweep(plan, a).train();

  std::vector<RunRecord> records;
  std::vector<RunDefinition> definitions;
  for (const PlannedRun& run : plan.runs)
    if (auto record = read_record(run_folder(a.out, run))) {
      definitions.push_back(record->definition);
      records.push_back(std::move(*record));
    }
  rbar::require(!records.empty(), "sweep", a.out, "a folder with runs of the plan", "none");
  require_same_data(definitions);
  const std::vector<SummaryRow> rows = summarise(records, plan.seeds.size());
  write_report(a.out, records, rows);
  print_summary(rows);
  if (a.json) {
    nlohmann::ordered_json json = nlohmann::ordered_json::array();
    for (const SummaryRow& row : rows) {
      nlohmann::ordered_json line;
      line["name"] = row.first->definition.name;
      line["lr"] = row.first->learning_rate();
      line["seeds"] = row.finished.size();
      line["failed"] = row.failed;
      line["val_nats"] = row.val_nats;
      line["best"] = row.best;
      json.push_back(std::move(line));
    }
    std::printf("%s\n", json.dump().c_str());
  }
  return failed > 0 ? 1 : 0;
}

int sweep(const Arguments& a) {
  SweepPlan plan = parse_plan(rbar::read_json(a.plan), a.plan);
  if (!a.text.empty()) plan.text = a.text;
  rbar::require(!plan.text.empty() || a.report, "sweep", a.plan, "\"text\", or --text", "neither");
  return run_sweep(plan, a);
}

}  // namespace rbar_lm
