package store

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"go.etcd.io/bbolt"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

const (
	// peerPort is the fixed port in the names under which servers find each other.
	peerPort = "2380"
	// A lone server has nobody to wait for when it elects itself, so ticks shorter
	// than etcd's default (100 ms, 1 s) only make it ready sooner: 0.1 to 0.2 s
	// instead of up to 0.5 s. Shorter ones still cost idle CPU time (10 ms: 1.7 %
	// of a core instead of 0.6 %). Servers that vote with others keep the default.
	loneTickMs, loneElectionMs = 50, 250
	// etcd keeps its last entries in memory for members that lag, and replays at the
	// start what came since its last snapshot. An entry is a whole batch here, so
	// its defaults (5,000 and 10,000) would be hundreds of megabytes after a load
	// of writes.
	catchUpEntries, snapshotEntries = 500, 2500
	// logBatches is how many batches the log holds on disk before older ones may
	// go: at most 1 GiB. In memory a lone server needs none, as no follower has to
	// catch up; etcd's default, 5,000, is 100 MB of batches with 64 small writes.
	logBatches, loneCatchUp = 1000, 16
	// startLimit bounds etcd's start, replaying its log included.
	startLimit = 2 * time.Minute
)

// server is one running etcd member.
type server struct {
	*embed.Etcd
}

// startServer starts the member that keeps its data in dir and waits until it
// serves. A lone one listens on nothing: its client lives in this process. etcd
// panics on damaged data; that becomes an error here.
func startServer(ctx context.Context, dir string, sc Config) (_ *server, err error) {
	member := memberName(sc.Name)
	peer := peerURL(member)
	cfg := embed.NewConfig()
	cfg.Name = member
	cfg.Dir = filepath.Join(dir, "etcd")
	cfg.ListenPeerUrls, cfg.ListenClientUrls = nil, nil
	cfg.AdvertisePeerUrls, cfg.AdvertiseClientUrls = []url.URL{peer}, nil
	cfg.InitialCluster = member + "=" + peer.String()
	cfg.InitialClusterToken = "fairlead"
	cfg.TickMs, cfg.ElectionMs = loneTickMs, loneElectionMs
	cfg.SnapshotCatchUpEntries, cfg.SnapshotCount = catchUpEntries, snapshotEntries
	cfg.SnapshotCount, cfg.SnapshotCatchUpEntries, cfg.MaxWalFiles, cfg.MaxSnapFiles = logBatches, loneCatchUp, 2, 2
	cfg.UnsafeNoFsync = sc.Dir == ""
	cfg.QuotaBackendBytes = -1 // room keeps to the quota
	// A batch's outer operations and those of any one transaction in it count
	// together, and the outer ones include the marker.
	cfg.MaxTxnOps = maxBatchOps + MaxTxnOps + 8
	// Framing grows a batch beyond the bytes of its keys and values.
	cfg.MaxRequestBytes = 4 * MaxTxnBytes
	cfg.EnableGRPCGateway = false
	cfg.AutoCompactionMode, cfg.AutoCompactionRetention = embed.CompactorModeRevision, "0"
	cfg.WarningApplyDuration = 500 * time.Millisecond
	cfg.WarningUnaryRequestDuration = time.Second
	cfg.LogLevel = "warn"
	cfg.ZapLoggerBuilder = embed.NewZapLoggerBuilder(newZap(sc.Log))
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDir, err)
	}
	if err := probe(filepath.Join(cfg.Dir, "member", "snap", "db")); err != nil {
		return nil, err
	}
	e, err := sc.Cluster.launch(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("start etcd in %s: %w", cfg.Dir, err)
	}
	limit := time.NewTimer(startLimit)
	defer limit.Stop()
	select {
	case <-e.Server.ReadyNotify():
		srv := &server{e}
		if sc.Cluster == nil {
			return srv, nil
		}
		if err = sc.Cluster.rename(ctx, srv); err == nil {
			return srv, nil
		}
	case err = <-e.Err():
	case <-e.Server.StopNotify():
		err = ErrClosed
	case <-ctx.Done():
		err = ctx.Err()
	case <-limit.C:
		err = fmt.Errorf("not ready after %v", startLimit)
	}
	e.Close()
	return nil, fmt.Errorf("start etcd in %s: %w", cfg.Dir, err)
}

// watchOver returns nil when ctx ends, and before that an error when etcd stops
// on its own.
func (s *server) watchOver(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case err := <-s.Err():
		return s.orRemoved(fmt.Errorf("etcd failed: %w", err))
	case <-s.Server.StopNotify():
		return s.orRemoved(errors.New("etcd stopped by itself"))
	}
}

// orRemoved is err, or ErrRemoved if that is why etcd has ended.
func (s *server) orRemoved(err error) error {
	if s.Server.IsIDRemoved(uint64(s.Server.MemberID())) {
		return ErrRemoved
	}
	return err
}

// probe opens a database file that exists. etcd would panic over a bad one, in a
// goroutine where nobody can catch it.
func probe(file string) error {
	if _, err := os.Stat(file); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	db, err := bbolt.Open(file, 0o600, &bbolt.Options{ReadOnly: true, Timeout: time.Second})
	if err != nil {
		return fmt.Errorf("%w: open database %s: %w", ErrDir, file, err)
	}
	return db.Close()
}

func launch(cfg *embed.Config) (e *embed.Etcd, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("its data cannot be read: %v", r)
		}
	}()
	return embed.StartEtcd(cfg)
}

// memberName is name if it can be a DNS label, and otherwise one made from it
// that no other name shares.
func memberName(name string) string {
	label := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '-' {
			return r
		}
		return '-'
	}, name)
	label = strings.Trim(label[:min(len(label), 40)], "-")
	if label == name && label != "" {
		return label
	}
	sum := sha256.Sum256([]byte(name))
	return strings.TrimPrefix(label+"-"+hex.EncodeToString(sum[:6]), "-")
}

// zapCore hands etcd's log entries of level warn and above to slog.
type zapCore struct {
	log    *slog.Logger
	fields []zapcore.Field
}

// expected are warnings that say nothing here. They speak of listeners that do
// not exist, of etcd's own tokens, which are not used, and of the storage version
// of a new database, which etcd looks for before it has written it.
var expected = map[string]bool{
	"Running http and grpc server on single port. This is not recommended for production.": true,
	"simple token is not cryptographically signed":                                         true,
	"Failed to detect schema version":                                                      true,
	"failed to update storage version":                                                     true,
}

func newZap(log *slog.Logger) *zap.Logger {
	// etcd must not end the process on its own; a panic in the start is caught.
	return zap.New(&zapCore{log: log.With("part", "etcd")}, zap.WithFatalHook(zapcore.WriteThenPanic))
}

func (c *zapCore) Enabled(l zapcore.Level) bool { return l >= zapcore.WarnLevel }

func (c *zapCore) With(f []zapcore.Field) zapcore.Core {
	return &zapCore{log: c.log, fields: append(c.fields[:len(c.fields):len(c.fields)], f...)}
}

func (c *zapCore) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(e.Level) && !expected[e.Message] {
		return ce.AddCore(e, c)
	}
	return ce
}

func (c *zapCore) Write(e zapcore.Entry, fields []zapcore.Field) error {
	enc := zapcore.NewMapObjectEncoder()
	for _, f := range c.fields {
		f.AddTo(enc)
	}
	for _, f := range fields {
		f.AddTo(enc)
	}
	args := make([]any, 0, 2*len(enc.Fields))
	for k, v := range enc.Fields {
		args = append(args, k, v)
	}
	level := slog.LevelWarn
	if e.Level >= zapcore.ErrorLevel {
		level = slog.LevelError
	}
	c.log.Log(context.Background(), level, e.Message, args...) //nolint:sloglint // the message is etcd's
	return nil
}

func (c *zapCore) Sync() error { return nil }
