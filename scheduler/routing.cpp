#include "scheduler/routing.h"

namespace thermocline::scheduler {

std::vector<RoutedLayer> routed_layers(const ops::Plan& plan) {
    std::vector<RoutedLayer> layers;
    for (const ops::Step& step : plan.steps)
        if (const auto* route = std::get_if<ops::Route>(&step)) layers.push_back({route->experts, route->top_k});
    return layers;
}

std::string shape_text(const std::vector<RoutedLayer>& layers) {
    std::string text = std::to_string(layers.size()) + " layers";
    for (size_t i = 0; i < layers.size(); ++i)
        if (i == 0 || layers[i] != layers[i - 1])
            text += (i ? ", from layer " + std::to_string(i) + " " : ", ") + std::to_string(layers[i].experts) +
                    " experts, top " + std::to_string(layers[i].top_k);
    return text;
}

}  // namespace thermocline::scheduler
