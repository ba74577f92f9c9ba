"""The browser view of runs (`metareward view`): index, pages, people's judgments, server. It changes no run."""
