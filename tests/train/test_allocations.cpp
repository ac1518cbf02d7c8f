#include "rbar/train/trainer.hpp"
#include "support/allocations.hpp"
#include "support/catch.hpp"
#include "support/tiny_language_model.hpp"

using namespace rbar;

TEST_CASE("from the second step on, training allocates nothing on the heap") {
  Rng rng(1);
  std::vector<Token> tokens(3000);
  for (Token& token : tokens) token = static_cast<Token>(rng.below(11));
  test::TinyLanguageModel<float> model(test::TinyConfig{.dropout = 0.2}, rng);
  TrainingConfig config;
  config.batch_size = 4;
  config.window = 16;
  config.accumulation = 2;
  for (const int threads : {1, 2}) {
    set_num_threads(threads);
    Trainer trainer(model, config);
    CHECK((!test::counts_allocations || test::allocations_in([&] { trainer.step(tokens); }) > 0));
    CHECK(test::allocations_in([&] {
            for (int i = 0; i < 5; ++i) trainer.step(tokens);
          }) == 0);
  }
  set_num_threads(1);
}
