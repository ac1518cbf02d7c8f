#include "rbar/io/checkpoint.hpp"

#include "io/temporary_folder.hpp"
#include "rbar/train/callbacks.hpp"
#include "support/catch.hpp"
#include "support/tiny_language_model.hpp"

#include <functional>

#if __has_include(<sys/resource.h>)
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#endif

using namespace rbar;
using Model = test::TinyLanguageModel<float>;

namespace {

std::vector<Token> text() {
  Rng rng(11);
  std::vector<Token> tokens(700);
  for (Token& token : tokens) token = static_cast<Token>(rng.below(11));
  return tokens;
}

test::TinyConfig model_config() { return {.dropout = 0.25}; }

TrainingConfig training_config() {
  TrainingConfig config;
  config.steps = 12;
  config.batch_size = 3;
  config.accumulation = 2;
  config.window = 7;
  config.seed = 5;
  config.schedule.warmup_steps = 4;
  return config;
}

// A model with its trainer, freshly initialised: what a new process has.
struct Run {
  Rng rng{1};
  Model model;
  Trainer<Model> trainer;
  explicit Run(const test::TinyConfig& m = model_config(), const TrainingConfig& t = training_config())
      : model(m, rng), trainer(model, t) {}
};

// Every number of the run, for comparison bit for bit.
std::vector<float> numbers(Run& run) {
  std::vector<float> all;
  for (const auto& tensor : detail::checkpoint_tensors(run.trainer))
    all.insert(all.end(), tensor.data, tensor.data + tensor.size);
  return all;
}

// `wreck` changes metadata or tensors of a good checkpoint; loading the result must fail with `message`
// and leave a trainer as it was.
using Metadata = std::map<std::string, std::string>;
void check_refused(const std::filesystem::path& good, const std::string& message,
                   const std::function<void(std::vector<TensorEntry>&, Metadata&)>& wreck) {
  INFO("expected message: " << message);
  const SafetensorsFile file(good);
  std::vector<TensorEntry> entries(file.entries().begin(), file.entries().end());
  Metadata metadata = file.metadata();
  wreck(entries, metadata);
  const auto path = good.string() + ".bad";
  write_safetensors(path, entries, metadata);
  Run run;
  run.trainer.step(text());
  const auto before = numbers(run);
  CHECK_THROWS_WITH(load_checkpoint(path, run.trainer), ContainsText(message));
  CHECK(numbers(run) == before);
  CHECK(run.trainer.state.step == 1);
  CHECK(run.trainer.state.optimizer.steps == 1);
}

}  // namespace

TEST_CASE("a resumed run has the bits of an uninterrupted one", "[io]") {
  const test::TemporaryFolder folder;
  const auto tokens = text();
  Run straight;
  std::vector<double> losses;
  straight.trainer.train(tokens, [&](auto&, StepReport& report) { losses.push_back(report.loss); });
  for (const Index cut : {0, 1, 5, 11, 12}) {
    INFO("interrupted after step " << cut);
    {
      Run first;
      while (first.trainer.state.step < cut) first.trainer.step(tokens);
      save_checkpoint(folder / "run", first.trainer);
    }
    Run second;
    second.model.bias(0) = 17;  // nothing of the new object may survive the loading
    second.trainer.step(tokens);
    load_checkpoint(folder / "run", second.trainer);
    CHECK(second.trainer.state.step == cut);
    second.trainer.train(tokens, [&](auto&, StepReport& report) {
      CHECK(report.loss == losses[static_cast<std::size_t>(report.step - 1)]);
    });
    CHECK(numbers(second) == numbers(straight));
    CHECK(second.trainer.state.windows.drawn == straight.trainer.state.windows.drawn);
  }
  CHECK(folder.count() == 1);
}

TEST_CASE("the callback saves on the beat and at the end; the best loss is kept", "[io]") {
  const test::TemporaryFolder folder;
  const auto tokens = text();
  const auto path = folder / "run";
  Run run;
  std::vector<Index> saved;
  PeriodicEvaluation<Model> evaluation{.tokens = tokens, .every = 3};
  run.trainer.train(tokens, evaluation, CheckpointEvery{path, 5}, [&](auto&, StepReport& report) {
    if (std::filesystem::remove(path)) saved.push_back(report.step);
    if (report.step == 12) save_checkpoint(path, run.trainer);
  });
  CHECK(saved == std::vector<Index>{5, 10, 12});
  Run other;
  load_checkpoint(path, other.trainer);
  CHECK(other.trainer.state.best_nats == run.trainer.state.best_nats);
  CHECK(other.trainer.state.best_step == run.trainer.state.best_step);
  CHECK(other.trainer.state.best_step > 0);

  // The model alone comes out of the same file.
  Rng rng(9);
  Model model(model_config(), rng);
  load_tensors(model, SafetensorsFile(path), "model.");
  CHECK(model.gain(0) == run.model.gain(0));
}

TEST_CASE("another training config is refused unless it is asked for", "[io]") {
  const test::TemporaryFolder folder;
  const auto tokens = text();
  Run run;
  run.trainer.step(tokens);
  save_checkpoint(folder / "run", run.trainer);
  TrainingConfig longer = training_config();
  longer.steps = 100;
  longer.optimizer.decay = WeightDecayGroup::all;
  Run other(model_config(), longer);
  CHECK_THROWS_WITH(load_checkpoint(folder / "run", other.trainer),
                    ContainsText("training config: expected decay \"all\", steps 100 (as here), got decay "
                                 "\"matrices\", steps 12"));
  load_checkpoint(folder / "run", other.trainer, TrainingConfigCheck::free);
  CHECK(numbers(other) == numbers(run));
  CHECK(other.trainer.config().steps == 100);
  CHECK(other.trainer.state.step == 1);

  test::TinyConfig wide = model_config();
  wide.hidden = 10;
  Run wider(wide);
  for (const auto check : {TrainingConfigCheck::same, TrainingConfigCheck::free})
    CHECK_THROWS_WITH(load_checkpoint(folder / "run", wider.trainer, check),
                      ContainsText("model config: expected hidden 10 (as here), got hidden 9"));
  Rng rng(1);
  test::TinyLanguageModel<double> precise(model_config(), rng);
  Trainer trainer(precise, training_config());
  CHECK_THROWS_WITH(load_checkpoint(folder / "run", trainer), ContainsText("scalar: expected 'F64', got 'F32'"));
}

TEST_CASE("a checkpoint that does not say what its products were computed in was trained in fp32", "[io]") {
  const test::TemporaryFolder folder;
  Run run, other;
  run.trainer.step(text());
  save_checkpoint(folder / "run", run.trainer);
  const SafetensorsFile file(folder / "run");
  auto metadata = file.metadata();
  auto training = nlohmann::json::parse(metadata["training_config"]);
  CHECK(training.erase("products") == 1);
  metadata["training_config"] = training.dump();
  write_safetensors(folder / "old", {file.entries().begin(), file.entries().end()}, metadata);
  load_checkpoint(folder / "old", other.trainer);
  CHECK(numbers(other) == numbers(run));
}

TEST_CASE("files that are wrong or damaged say how, and change nothing", "[io]") {
  const test::TemporaryFolder folder;
  const auto path = folder / "run";
  Run run;
  run.trainer.step(text());
  run.trainer.step(text());
  save_checkpoint(path, run.trainer);
  check_refused(path, "format: expected 'rbar-checkpoint', got 'pt'", [](auto&, auto& m) { m["format"] = "pt"; });
  check_refused(path, "version: expected '1', got '2'", [](auto&, auto& m) { m["version"] = "2"; });
  check_refused(path, "model_type", [](auto&, auto& m) { m["model_type"] = "cort"; });
  check_refused(path, "'checksums' in the metadata, got none", [](auto&, auto& m) { m.erase("checksums"); });
  check_refused(path, "progress", [](auto&, auto& m) { m["progress"] = R"({"step": 3})"; });
  check_refused(path, "negative",
                [](auto&, auto& m) { m["progress"].replace(m["progress"].find("\"step\":2"), 8, "\"step\":-2"); });
  check_refused(path, "valid JSON", [](auto&, auto& m) { m["training_config"] = "{"; });
  check_refused(path, "an object", [](auto&, auto& m) { m["model_config"] = "3"; });
  check_refused(path, "is missing", [](auto& entries, auto&) { entries.pop_back(); });
  check_refused(path, "load_checkpoint: ", [](auto& entries, auto&) { std::swap(entries[0].name, entries[1].name); });
  std::vector<std::byte> damaged;
  check_refused(path, "the file is damaged", [&](auto& entries, auto&) {
    auto& entry = entries.back();
    damaged.assign(entry.data.begin(), entry.data.end());
    damaged[damaged.size() / 2] ^= std::byte{0x10};  // one flipped bit
    entry.data = damaged;
  });

  const std::string whole(MappedFile(path).text());
  Run other;
  const auto before = numbers(other);
  for (std::size_t length = 0; length < whole.size(); length += 1 + whole.size() / 50) {
    write_file_atomically(folder / "short", std::string_view(whole).substr(0, length));
    CHECK_THROWS_AS(load_checkpoint(folder / "short", other.trainer), Error);
  }
  CHECK_THROWS_AS(load_checkpoint(folder / "none", other.trainer), Error);
  CHECK(numbers(other) == before);

  run.model.bias(2) = std::numeric_limits<float>::infinity();
  CHECK_THROWS_WITH(save_checkpoint(path, run.trainer), ContainsText("model.up.bias: expected finite values"));
  CHECK(MappedFile(path).text() == whole);
}

#if __has_include(<sys/resource.h>)
TEST_CASE("a writer that dies or runs out of disk in the middle leaves the old checkpoint whole", "[io]") {
  const test::TemporaryFolder folder;
  const auto path = folder / "run";
  const auto tokens = text();
  Run run;
  run.trainer.step(tokens);
  save_checkpoint(path, run.trainer);
  const auto kept = numbers(run);
  const std::string whole(MappedFile(path).text());
  run.trainer.step(tokens);
  for (const bool killed : {true, false})
    for (const std::size_t limit : {std::size_t{0}, std::size_t{1}, whole.size() / 2, whole.size() - 1}) {
      INFO((killed ? "killed" : "refused") << " after " << limit << " bytes");
      const pid_t child = fork();
      if (child == 0) {
        // At this file size the system kills the process in the middle of write(), or fails the call
        // when the signal is ignored, as a full disk does.
        const rlimit sizes{limit, limit};
        setrlimit(RLIMIT_FSIZE, &sizes);
        std::signal(SIGXFSZ, killed ? SIG_DFL : SIG_IGN);
        try {
          save_checkpoint(path, run.trainer);
        } catch (const Error&) {
          _exit(7);
        }
        _exit(0);
      }
      int status = 0;
      REQUIRE(waitpid(child, &status, 0) == child);
      if (killed)
        CHECK((WIFSIGNALED(status) && WTERMSIG(status) == SIGXFSZ));
      else
        CHECK((WIFEXITED(status) && WEXITSTATUS(status) == 7));
      CHECK(MappedFile(path).text() == whole);
      Run other;
      load_checkpoint(path, other.trainer);
      CHECK(numbers(other) == kept);
    }
  // Saving works again, whatever the dead have left in the folder.
  save_checkpoint(path, run.trainer);
  Run other;
  load_checkpoint(path, other.trainer);
  CHECK(numbers(other) == numbers(run));
}
#endif
