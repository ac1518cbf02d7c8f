// A model saved in a folder and loaded again; folders that hold something else.
#include "rbar/io/pretrained.hpp"

#include "audit/toy_layers.hpp"
#include "io/temporary_folder.hpp"
#include "support/catch.hpp"

namespace {

// The toy language model with a second parameter and a buffer.
struct Model : toy::Bigram<float> {
  rbar::Tensor<float, 1> bias, threshold;
  Model(const Config& c, rbar::Rng& rng) : Bigram(c, rng), bias(c.vocab_size), threshold(2) {
    for (float& value : rbar::elements(bias)) value = static_cast<float>(rng.normal());
    threshold.setConstant(0.5f);
  }
  void parameters(auto&& visit) {
    Bigram::parameters(visit);
    visit("bias", bias);
  }
  void buffers(auto&& visit) { visit("router.threshold", threshold); }
};
struct OtherModel : Model {
  static constexpr const char* model_type = "other";
  using Model::Model;
};

}  // namespace

TEST_CASE("from_pretrained gives the model that was saved", "[io]") {
  const test::TemporaryFolder folder;
  rbar::Rng rng(6);
  Model model({7}, rng);
  model.threshold.setValues({0.25f, -1.5f});
  rbar::save_pretrained(model, folder / "new/folder");
  const auto loaded = rbar::from_pretrained<Model>(folder / "new/folder");
  CHECK(loaded.config.vocab_size == 7);
  CHECK(loaded.table(6, 5) == model.table(6, 5));
  CHECK(loaded.bias(6) == model.bias(6));
  CHECK(loaded.threshold(1) == -1.5f);

  rbar::save_pretrained(loaded, folder / "again");
  CHECK(rbar::MappedFile(folder / "again/model.safetensors").text() ==
        rbar::MappedFile(folder / "new/folder/model.safetensors").text());
}

TEST_CASE("from_pretrained refuses another model's folder", "[io]") {
  const test::TemporaryFolder folder;
  rbar::Rng rng(6);
  const Model model({7}, rng);
  rbar::save_pretrained(model, folder / "m");
  CHECK_THROWS_WITH(rbar::from_pretrained<OtherModel>(folder / "m"),
                    ContainsText("model_type: expected other, got \"bigram\""));
  CHECK_THROWS_WITH(rbar::from_pretrained<Model>(folder / "none"), ContainsText("No such file"));
  const auto config = [&](std::string_view text) { rbar::write_file_atomically(folder / "m/config.json", text); };
  config(R"({"vocab_size": 7})");
  CHECK_THROWS_WITH(rbar::from_pretrained<Model>(folder / "m"), ContainsText("expected bigram, got none"));
  config(R"({"vocab_size": 7, "model_type": "bigram", "vocab": 3})");
  CHECK_THROWS_WITH(rbar::from_pretrained<Model>(folder / "m"), ContainsText("'vocab_size'), got 'vocab'"));
  config("[]");
  CHECK_THROWS_WITH(rbar::from_pretrained<Model>(folder / "m"), ContainsText("an object"));
  config(R"({"vocab_size": 6, "model_type": "bigram"})");
  CHECK_THROWS_WITH(rbar::from_pretrained<Model>(folder / "m"),
                    ContainsText("'table' is [7, 7] instead of [6, 6]; 'bias' is [7] instead of [6]"));
}

TEST_CASE("load_tensors lists everything that does not fit, and changes nothing then", "[io]") {
  const test::TemporaryFolder folder;
  rbar::Rng rng(6);
  Model model({2}, rng);
  const float before = model.table(0, 0);
  const rbar::Tensor<float, 2> table = rbar::zeros<float, 2>({2, 2});
  const rbar::Tensor<double, 1> bias = rbar::zeros<double, 1>({2}), transposed = rbar::zeros<double, 1>({3});
  const auto load = [&](std::vector<rbar::TensorEntry> entries, const std::string& prefix = "") {
    rbar::write_safetensors(folder / "f", entries);
    rbar::load_tensors(model, rbar::SafetensorsFile(folder / "f"), prefix);
  };
  CHECK_THROWS_WITH(
      load({rbar::tensor_entry("table", table), rbar::tensor_entry("bias", transposed),
            rbar::tensor_entry("extra", bias)}),
      ContainsText((folder / "f").string() + ": expected the 3 tensors of this model, got 'bias' is "
                                             "[3] instead of [2]; 'router.threshold' is missing; 'extra' is unknown"));
  CHECK(model.table(0, 0) == before);

  // A tensor that cannot be converted is found before the one in front of it is copied.
  const rbar::Tensor<std::int64_t, 1> integers = rbar::zeros<std::int64_t, 1>({2});
  CHECK_THROWS_WITH(load({rbar::tensor_entry("table", table), rbar::tensor_entry("bias", bias),
                          rbar::tensor_entry("router.threshold", integers)}),
                    ContainsText("'router.threshold' holds I64 instead of floating-point numbers"));
  CHECK(model.table(0, 0) == before);

  // Under a prefix, beside tensors of others, and from another floating-point type.
  load({rbar::tensor_entry("m.table", table), rbar::tensor_entry("m.bias", bias),
        rbar::tensor_entry("m.router.threshold", bias), rbar::tensor_entry("optimizer", bias)},
       "m.");
  CHECK(model.table(0, 0) == 0);
  CHECK(model.threshold(0) == 0);
}
