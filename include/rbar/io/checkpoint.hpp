// A training run in one safetensors file: parameters and buffers ("model."), the moments of AdamW
// ("adamw.first.", "adamw.second."), and in the metadata the two configs, where the run stands and a
// checksum of every tensor. Going on from it gives the bits of a run that was never interrupted.
//   trainer.train(tokens, CheckpointEvery{"run.safetensors", 500});
//   load_checkpoint("run.safetensors", trainer);   // a trainer of the same model and configs, anywhere
// The model alone can be taken out of it: load_tensors(model, SafetensorsFile("run.safetensors"), "model.").
#pragma once

#include "rbar/io/config_json.hpp"
#include "rbar/io/pretrained.hpp"
#include "rbar/io/safetensors.hpp"
#include "rbar/train/trainer.hpp"

#include <bit>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <limits>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace rbar {

// What load_checkpoint asks of the trainer's TrainingConfig. The model's config must always be the file's.
enum class TrainingConfigCheck {
  same,  // equal to the file's: the run goes on bit for bit
  free,  // whatever the trainer has: to train longer, or on with another learning rate
};

namespace detail {

inline constexpr const char* checkpoint_format = "rbar-checkpoint";
inline constexpr const char* checkpoint_version = "1";

// The integers of TrainingState. The state of all random numbers is among them: they are counted, and
// the seed is in the training config.
struct CheckpointProgress {
  Index step = 0;
  std::uint64_t windows_drawn = 0;
  std::int64_t optimizer_steps = 0;
  std::optional<double> best_nats;  // none before the first evaluation
  Index best_step = 0;

  template <class V>
  void fields(V&& v) {
    v("step", step);
    v("windows_drawn", windows_drawn);
    v("optimizer_steps", optimizer_steps);
    v("best_nats", best_nats);
    v("best_step", best_step);
  }
};

// All tensors of a run under their names in the file.
template <LanguageModel M>
std::vector<ParameterRef<typename M::Scalar>> checkpoint_tensors(Trainer<M>& trainer) {
  auto tensors = saved_tensors_of(trainer.model());
  for (auto& tensor : tensors) tensor.name = "model." + tensor.name;
  const auto& parts = trainer.parameters().parts();
  const auto add_moments = [&](const std::string& prefix, std::vector<typename M::Scalar>& moments) {
    for (std::size_t i = 0; i < parts.size(); ++i)
      tensors.push_back(
          {prefix + parts[i].name, moments.data() + trainer.parameters().offset(i), parts[i].size, parts[i].shape});
  };
  add_moments("adamw.first.", trainer.state.optimizer.first);
  add_moments("adamw.second.", trainer.state.optimizer.second);
  return tensors;
}

// Detects damage, not malice: 64-bit words multiplied into a running sum (the step of FNV-1a on words).
inline std::string checksum(std::span<const std::byte> data) {
  std::uint64_t sum = 0xcbf29ce484222325 ^ data.size();
  const auto mix = [&sum](std::uint64_t word) { sum = std::rotl((sum ^ word) * 0x9e3779b97f4a7c15, 29); };
  std::size_t i = 0;
  for (; i + 8 <= data.size(); i += 8) mix(load_stored<std::uint64_t>(data.data() + i));
  for (; i < data.size(); ++i) mix(static_cast<std::uint64_t>(data[i]));
  char text[17];
  std::snprintf(text, sizeof text, "%016llx", static_cast<unsigned long long>(sum));
  return text;
}

inline nlohmann::json checkpoint_metadata(const SafetensorsFile& file, const std::string& key) {
  const auto found = file.metadata().find(key);
  require(found != file.metadata().end(), "load_checkpoint", file.path(), "'" + key + "' in the metadata", "none");
  return parse_json(found->second, file.path() + ": " + key);
}

// Nothing if the two objects are equal; otherwise an Error with exactly the members that differ.
inline void require_same_config(const std::string& argument, const nlohmann::json& ours, const nlohmann::json& stored) {
  require(stored.is_object(), "load_checkpoint", argument, "an object", stored.type_name());
  std::string expected, got;
  const auto compare = [&](const std::string& key) {
    const auto text = [&key](const nlohmann::json& json) {
      return json.contains(key) ? printable(json.at(key).dump(-1, ' ', true)) : std::string("none");
    };
    if (text(ours) == text(stored)) return;
    expected += (expected.empty() ? "" : ", ") + printable(key) + " " + text(ours);
    got += (got.empty() ? "" : ", ") + printable(key) + " " + text(stored);
  };
  for (const auto& [key, ignored] : ours.items()) compare(key);
  for (const auto& [key, ignored] : stored.items())
    if (!ours.contains(key)) compare(key);
  require(expected.empty(), "load_checkpoint", argument, expected + " (as here)", got);
}

}  // namespace detail

// Writes atomically: until the new file is complete on the disk, an older one of this name stays whole.
// Errors: a parameter or moment that is not finite, and whatever the file system refuses.
template <LanguageModel M>
void save_checkpoint(const std::filesystem::path& path, Trainer<M>& trainer) {
  using T = typename M::Scalar;
  std::vector<TensorEntry> entries;
  nlohmann::json checksums = nlohmann::json::object();
  for (const auto& tensor : detail::checkpoint_tensors(trainer)) {
    const std::span<const T> values = tensor.values();
    require_finite("save_checkpoint", tensor.name, values);
    entries.push_back(tensor_entry<T>(tensor.name, values, {tensor.shape.begin(), tensor.shape.end()}));
    checksums[tensor.name] = detail::checksum(entries.back().data);
  }
  const auto& state = trainer.state;
  detail::CheckpointProgress progress;
  progress.step = state.step;
  progress.windows_drawn = state.windows.drawn;
  progress.optimizer_steps = state.optimizer.steps;
  progress.best_step = state.best_step;
  if (std::isfinite(state.best_nats)) progress.best_nats = state.best_nats;
  write_safetensors(path, entries,
                    {{"format", detail::checkpoint_format},
                     {"version", detail::checkpoint_version},
                     {"model_type", detail::model_type_of<M>()},
                     {"scalar", name_of(dtype_of<T>())},
                     {"model_config", to_json(trainer.model().config).dump()},
                     {"training_config", to_json(trainer.config()).dump()},
                     {"progress", to_json(progress).dump()},
                     {"checksums", checksums.dump()}});
}

// Gives `trainer`, and the model it trains, everything in the file. Errors, before anything is changed:
// a file that is no checkpoint of this version, one of another model type, scalar or config (with what
// differs), and one that is damaged (with the tensor).
template <LanguageModel M>
void load_checkpoint(const std::filesystem::path& path, Trainer<M>& trainer,
                     TrainingConfigCheck check = TrainingConfigCheck::same) {
  constexpr const char* operation = "load_checkpoint";
  const SafetensorsFile file(path);
  const auto require_metadata = [&](const std::string& key, const std::string& expected) {
    const auto found = file.metadata().find(key);
    const std::string got = found == file.metadata().end() ? "none" : found->second;
    require(got == expected, operation, file.path() + ": " + key, "'" + expected + "'",
            "'" + detail::printable(got) + "'");
  };
  require_metadata("format", detail::checkpoint_format);
  require_metadata("version", detail::checkpoint_version);
  require_metadata("model_type", detail::model_type_of<M>());
  require_metadata("scalar", name_of(dtype_of<typename M::Scalar>()));
  detail::require_same_config(file.path() + ": model config", to_json(trainer.model().config),
                              detail::checkpoint_metadata(file, "model_config"));
  if (check == TrainingConfigCheck::same) {
    nlohmann::json training = detail::checkpoint_metadata(file, "training_config");
    // A file from before there was a choice.
    if (training.is_object() && !training.contains("products")) training["products"] = name_of(Products::fp32);
    detail::require_same_config(file.path() + ": training config", to_json(trainer.config()), training);
  }

  const nlohmann::json stored = detail::checkpoint_metadata(file, "progress");
  const auto progress = from_json<detail::CheckpointProgress>(stored);
  require(stored == to_json(progress) && progress.step >= 0 && progress.optimizer_steps >= 0, operation,
          file.path() + ": progress", "all its members, none negative", detail::printable(stored.dump(-1, ' ', true)));

  const nlohmann::json checksums = detail::checkpoint_metadata(file, "checksums");
  for (const auto& entry : file.entries())
    require(checksums.is_object() && checksums.value(entry.name, nlohmann::json()) == detail::checksum(entry.data),
            operation, file.path() + ": " + detail::printable(entry.name), "data with the checksum of its header",
            "other data (the file is damaged)");
  load_tensors(detail::checkpoint_tensors(trainer), file);

  auto& state = trainer.state;
  state.step = progress.step;
  state.windows.drawn = progress.windows_drawn;
  state.optimizer.steps = progress.optimizer_steps;
  state.best_nats = progress.best_nats.value_or(std::numeric_limits<double>::infinity());
  state.best_step = progress.best_step;
}

// The callback: saves after every `every` steps and after the last.
struct CheckpointEvery {
  std::filesystem::path path;
  Index every = 1000;

  void operator()(auto& trainer, StepReport& report) const {
    if (report.step % every == 0 || report.last()) save_checkpoint(path, trainer);
  }
};

}  // namespace rbar
