#include "../model_of.hpp"

#include "rbar/model/kuramoto_lm.hpp"

static const bool registered =
    rbar_lm::register_family<rbar::KuramotoLM<float>>("tokens are angles on a torus that attention synchronises");
