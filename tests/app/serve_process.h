// `thermocline serve` as a process of its own, on a free port of loopback. Used by one thread.
#pragma once

#include <string>
#include <sys/types.h>
#include <vector>

namespace thermocline::app {

class ServeProcess {
public:
    /// Starts `binary serve ARGUMENTS` and waits until it answers; Error when it ends before, with what it logged.
    ServeProcess(const std::string& binary, const std::vector<std::string>& arguments);
    /// Ends it, if stop() did not.
    ~ServeProcess();
    ServeProcess(const ServeProcess&) = delete;
    ServeProcess& operator=(const ServeProcess&) = delete;

    int port() const { return port_; }
    bool is_alive() const;
    int64_t resident_bytes() const;
    int64_t open_files() const;
    std::string log() const;
    /// SIGTERM; the exit status, -1 when a signal ended it.
    int stop();

private:
    std::string folder_;
    pid_t pid_ = -1;
    int port_ = 0;
};

}  // namespace thermocline::app
