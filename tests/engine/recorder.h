// Writes down all that a listener of the fake model hears.
#pragma once

#include "src/engine/engine.h"
#include "tests/engine/fake_model.h"

#include <condition_variable>
#include <mutex>
#include <string>
#include <vector>

namespace thermocline::testing {

class Recorder : public engine::Listener {
public:
    void on_prefill(int64_t processed, int64_t) override { progress.push_back(processed); }
    void on_prompt(std::span<const engine::Token> scored) override {
        prompt.insert(prompt.end(), scored.begin(), scored.end());
    }
    bool on_token(const engine::Token& token) override {
        tokens.push_back(token);
        if (!token.ends) text += static_cast<char>(token.id - kFirstByte);
        return stop_after == 0 || tokens.size() < stop_after;
    }
    void on_finish(const engine::Result& finished) override {
        const std::lock_guard lock(mutex);
        result = finished;
        ++finishes;
        done.notify_all();
    }
    const engine::Result& wait() {
        std::unique_lock lock(mutex);
        done.wait(lock, [&] { return finishes > 0; });
        return result;
    }

    std::vector<int64_t> progress;
    std::vector<engine::Token> prompt, tokens;
    std::string text;
    size_t stop_after = 0;
    std::mutex mutex;
    std::condition_variable done;
    engine::Result result;
    int finishes = 0;
};

}  // namespace thermocline::testing
