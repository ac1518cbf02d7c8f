// A model in a folder: config.json (its Config, and "model_type") and model.safetensors (parameters
// and buffers under the names of the `parameters` and `buffers` visitors).
//   save_pretrained(model, "out");
//   auto model = from_pretrained<CoRTModel<float>>("out");
#pragma once

#include "rbar/core/parameters.hpp"
#include "rbar/core/random.hpp"
#include "rbar/io/config_json.hpp"
#include "rbar/io/safetensors.hpp"

#include <filesystem>
#include <set>
#include <string>
#include <vector>

namespace rbar {

namespace detail {

template <class Model>
auto saved_tensors_of(Model& model) {
  auto tensors = parameters_of(model);
  for (auto& buffer : buffers_of(model)) tensors.push_back(std::move(buffer));
  return tensors;
}

// The name under which a model's config knows it: Model::model_type, where a model has one.
template <class Model>
std::string model_type_of() {
  if constexpr (requires { std::string(Model::model_type); })
    return Model::model_type;
  else
    return "";
}

}  // namespace detail

// Parameters and buffers as entries for write_safetensors; they point into the model.
template <class Model>
std::vector<TensorEntry> tensor_entries(const Model& model) {
  using T = typename Model::Scalar;
  std::vector<TensorEntry> entries;
  for (const auto& tensor : detail::saved_tensors_of(model))
    entries.push_back(
        tensor_entry<T>(tensor.name, std::span<const T>(tensor.values()), {tensor.shape.begin(), tensor.shape.end()}));
  return entries;
}

// Fills `tensors` from a file that has exactly these under `prefix`.
// Errors, before anything is changed: one that lists all missing, unknown and wrongly shaped tensors.
template <class T>
void load_tensors(const std::vector<ParameterRef<T>>& tensors, const SafetensorsFile& file,
                  const std::string& prefix = "") {
  std::vector<std::string> problems;
  std::set<std::string> known;
  for (const auto& tensor : tensors) {
    const std::string name = prefix + tensor.name;
    known.insert(name);
    if (!file.contains(name)) {
      problems.push_back("'" + name + "' is missing");
    } else if (const auto& shape = file.at(name).shape;
               !std::equal(shape.begin(), shape.end(), tensor.shape.begin(), tensor.shape.end())) {
      problems.push_back("'" + name + "' is " + detail::describe_shape(shape) + " instead of " +
                         detail::describe_shape(tensor.shape));
    } else if (const Dtype dtype = file.at(name).dtype; !is_floating(dtype)) {
      problems.push_back("'" + name + "' holds " + name_of(dtype) + " instead of floating-point numbers");
    }
  }
  for (const auto& entry : file.entries())
    if (entry.name.starts_with(prefix) && !known.contains(entry.name))
      problems.push_back("'" + detail::printable(entry.name) + "' is unknown");
  if (!problems.empty()) {
    constexpr std::size_t most = 8;
    std::string list;
    for (std::size_t i = 0; i < std::min(most, problems.size()); ++i) list += (i ? "; " : "") + problems[i];
    if (problems.size() > most) list += "; and " + std::to_string(problems.size() - most) + " more";
    throw Error("load_tensors", file.path(), "the " + std::to_string(tensors.size()) + " tensors of this model", list);
  }
  for (const auto& tensor : tensors) file.copy_to<T>(prefix + tensor.name, tensor.values());
}

// The same for the parameters and buffers of a model.
template <Parameterised Model>
void load_tensors(Model& model, const SafetensorsFile& file, const std::string& prefix = "") {
  load_tensors<typename Model::Scalar>(detail::saved_tensors_of(model), file, prefix);
}

// Writes the folder, each file atomically. Errors: what the file system refuses.
template <class Model>
void save_pretrained(const Model& model, const std::filesystem::path& folder) {
  std::error_code failure;
  std::filesystem::create_directories(folder, failure);
  require(!failure, "save_pretrained", folder.string(), "a folder that can be made", failure.message());
  nlohmann::json json = to_json(model.config);
  if (const auto type = detail::model_type_of<Model>(); !type.empty()) json["model_type"] = type;
  // "pt" says that weights are [out, in] as PyTorch has them.
  write_safetensors(folder / "model.safetensors", tensor_entries(model), {{"format", "pt"}});
  write_json(folder / "config.json", json);
}

// Errors: a file that is missing or malformed, another model type, unknown keys, and tensors that
// are not exactly the model's.
template <class Model>
Model from_pretrained(const std::filesystem::path& folder) {
  const auto path = folder / "config.json";
  nlohmann::json json = read_json(path);
  if (const auto type = detail::model_type_of<Model>(); !type.empty() && json.is_object()) {
    const auto found = json.find("model_type");
    require(found != json.end() && *found == type, "from_pretrained", path.string() + ": model_type", type,
            found == json.end() ? "none" : detail::printable(found->dump(-1, ' ', true)));
    json.erase(found);
  }
  Rng rng;  // the initial values are all overwritten
  Model model(from_json<typename Model::Config>(json), rng);
  load_tensors(model, SafetensorsFile(folder / "model.safetensors"));
  return model;
}

}  // namespace rbar
