// A server whose model writes given answers, in turn, whatever is asked: clients and the page can be tried with text
// that a small model would never write. Tokens are bytes.
//
//   replay_server --port 8000 --answers FILE [--tokens-per-second 50]
//
// FILE: JSON lines, each a string: the output of the model from its first byte on, markup and all ("</think>" ends the
// thought that the prompt opens).
#include "src/base/file.h"
#include "tests/server/replay_model.h"

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <sstream>

namespace thermocline::server {
namespace {

std::vector<std::vector<int32_t>> read_answers(const std::string& path, const text::Tokenizer& tokenizer) {
    std::vector<std::vector<int32_t>> answers;
    std::istringstream lines(read_text(path));
    for (std::string line; std::getline(lines, line);)
        if (!line.empty()) answers.push_back(tokenizer.encode(parse_json(line, path).get<std::string>()));
    if (answers.empty()) fail(path, ": holds no answer, expected a JSON string a line");
    return answers;
}

void serve(int port, const std::string& path, double tokens_per_second) {
    const text::Tokenizer tokenizer = fake_tokenizer();
    const auto answers = read_answers(path, tokenizer);
    const auto replay = std::make_shared<Replay>();
    replay->on_prompt = [&answers, replay = replay.get(), next = size_t{0}]() mutable {
        replay->answer = answers[next++ % answers.size()];
    };
    if (tokens_per_second > 0) replay->pace = std::chrono::duration<double>(1.0 / tokens_per_second);
    engine::Engine engine(std::make_unique<ReplayForward>(replay), {256, {kEos}}, cpu::select_kernels("auto"));
    ServerOptions options;
    options.http.port = port;
    options.version = "replay";
    StopSignal stop;
    Server server(options);
    ServedModel model;
    model.name = model.root = "replay";
    model.max_model_len = engine.max_model_len();
    model.vocab = engine.vocab();
    model.fingerprint = "breplay";
    std::printf("listening on http://%s:%d\n", options.http.host.c_str(), server.bind());
    std::fflush(stdout);
    std::thread listener([&] { server.listen(); });
    server.serve({&engine, &tokenizer, model});
    while (!stop.wait(std::chrono::hours(1))) {
    }
    server.shut_down();
    listener.join();
}

}  // namespace
}  // namespace thermocline::server

int main(int argc, char** argv) {
    int port = 0;
    std::string answers;
    double rate = 0;
    for (int i = 1; i + 1 < argc; i += 2) {
        const std::string flag = argv[i];
        if (flag == "--port") port = std::atoi(argv[i + 1]);
        if (flag == "--answers") answers = argv[i + 1];
        if (flag == "--tokens-per-second") rate = std::atof(argv[i + 1]);
    }
    if (answers.empty()) {
        std::fprintf(stderr, "usage: %s --answers FILE [--port N] [--tokens-per-second N]\n", argv[0]);
        return 2;
    }
    try {
        thermocline::server::serve(port, answers, rate);
    } catch (const thermocline::Error& error) {
        std::fprintf(stderr, "%s\n", error.what());
        return 1;
    }
    return 0;
}
