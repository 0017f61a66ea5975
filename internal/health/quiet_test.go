package health

import (
	"log/slog"
)

var (
	quietLog = slog.New(slog.DiscardHandler)
	quiet    = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
)
