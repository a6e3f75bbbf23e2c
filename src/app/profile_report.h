// What a routing profile shows to people: a table for the terminal, heat maps and curves as SVG or HTML.
#pragma once

#include "scheduler/routing_profile.h"

#include <string>

namespace thermocline::app {

std::string profile_text(const scheduler::RoutingProfile& profile);

/// Throws Error unless it is empty or ends with .html, .svg or .png; for .png rsvg-convert must be on the PATH.
void check_report_path(const std::string& path);

/// Writes one picture: of every kind of text a heat map (layers down, experts across, by how often each is chosen) for
/// prefill and decode, and working-set curves. As SVG, drawn from that as PNG, or as a page that holds it, by what
/// `path` ends with. No scripts, no links. Throws Error if the file cannot be written.
void write_report(const scheduler::RoutingProfile& profile, const std::string& path);

}  // namespace thermocline::app
