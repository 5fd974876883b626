"""The mathematics: levels, schedules, denoisers, samplers. torch only; no network, no file, no printing."""
