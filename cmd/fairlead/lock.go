package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/fairlead-net/fairlead/api"
)

const (
	// lockFlags marks an entry as a lock; 'consul lock' and Consul's libraries use
	// the same number, and refuse an entry with another.
	lockFlags = 0x2ddccbc058a50c18
	// lockPause is between two attempts at a lock that nobody holds but that may
	// not be taken yet.
	lockPause = time.Second
	// lockGrace is what a command gets to end by itself that has lost its lock,
	// and what the agent gets to hear that a lock is free.
	lockGrace = 5 * time.Second
	// statusSignal plus a signal's number is the exit code of what it ended.
	statusSignal = 128
)

func lockCommand(o *options) *cobra.Command {
	l := &locker{}
	c := &cobra.Command{
		Use:   "lock [flags] KEY COMMAND [ARG...]",
		Short: "Run a command while holding a lock",
		Long: `Waits for the lock of a key, runs the command and releases the lock when it ends.
Signals are passed on to the command, and its exit code is that of fairlead. A
command that loses its lock, because the agent is away for too long or somebody
destroyed its session, is ended with SIGTERM and, if that takes longer than 5
seconds, SIGKILL.

The lock is the entry KEY/.lock, as with 'consul lock': the two exclude each other.
If this process dies, the lock is free after at most twice the TTL.`,
		Example: `  fairlead lock jobs/backup ./backup.sh --full
  fairlead lock --timeout 5s jobs/backup ./backup.sh`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) < 2 || args[0] == "" || args[1] == "--" && len(args) == 2 {
				return usagef("name a key and a command: fairlead lock KEY COMMAND [ARG...]")
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := o.client()
			if err != nil {
				return err
			}
			l.cl, l.key, l.command = cl, path.Join(args[0], ".lock"), args[1:]
			if l.command[0] == "--" {
				l.command = l.command[1:]
			}
			l.stdin, l.stdout, l.stderr = c.InOrStdin(), c.OutOrStdout(), c.ErrOrStderr()
			return l.run(c.Context())
		},
	}
	c.Flags().SetInterspersed(false) // what follows the key is the command's
	c.Flags().DurationVar(&l.ttl, "ttl", 15*time.Second, "time after which a lock is lost whose holder is not heard of")
	c.Flags().DurationVar(&l.timeout, "timeout", 0, "how long to wait for the lock (default: for ever)")
	c.Flags().StringVar(&l.name, "name", "", "name of the session that holds the lock (default: the command)")
	return c
}

// locker holds a lock while a command runs.
type locker struct {
	cl             *api.Client
	key            string
	command        []string
	ttl, timeout   time.Duration
	name           string
	stdin          io.Reader
	stdout, stderr io.Writer
}

var errLockLost = errors.New("the lock is lost")

func (l *locker) run(ctx context.Context) error {
	// From here on signals are for the command, if it runs.
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2)
	defer signal.Stop(signals)

	name := l.name
	if name == "" {
		name = "fairlead lock: " + l.command[0]
	}
	session, err := l.cl.CreateSession(ctx, api.SessionSpec{Name: name, TTL: l.ttl})
	if err != nil {
		return fmt.Errorf("lock %s: %w", l.key, err)
	}
	// What holds the lock outlives the first signal, which is the command's.
	hold, stop := context.WithCancelCause(context.WithoutCancel(ctx))
	renewed := make(chan struct{})
	go func() {
		defer close(renewed)
		stop(l.renew(hold, session))
	}()
	defer func() {
		stop(nil)
		<-renewed
		l.release(session)
	}()
	if err := l.acquire(ctx, hold, session); err != nil {
		return fmt.Errorf("lock %s: %w", l.key, err)
	}
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		stop(l.watch(hold, session))
	}()
	err = l.runCommand(hold, signals)
	stop(nil)
	<-watched
	return err
}

// renew keeps the session alive until ctx ends; it returns when the session has
// ended or nobody knows whether it has.
func (l *locker) renew(ctx context.Context, session string) error {
	last := time.Now()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(l.ttl / 2):
		}
		err := l.cl.RenewSession(ctx, session)
		switch {
		case err == nil:
			last = time.Now()
		case ctx.Err() != nil:
			return nil
		case api.IsNotFound(err):
			return fmt.Errorf("%w: its session has ended", errLockLost)
		case time.Since(last) > 2*l.ttl:
			return fmt.Errorf("%w: %w", errLockLost, err)
		}
	}
}

// acquire waits for the lock until ctx or hold ends, or the time is over.
func (l *locker) acquire(ctx, hold context.Context, session string) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(hold, func() { cancel(context.Cause(hold)) })()
	if l.timeout > 0 {
		timer := time.AfterFunc(l.timeout, func() {
			cancel(fmt.Errorf("not to be had within %s; 'fairlead kv get -o yaml %s' shows who holds it", l.timeout, l.key))
		})
		defer timer.Stop()
	}
	for {
		ok, err := l.cl.AcquireKV(ctx, api.KV{Key: l.key, Flags: lockFlags, Session: session})
		if err == nil && !ok {
			err = l.wait(ctx)
		}
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err != nil:
			return err
		case ok:
			return nil
		}
	}
}

// wait returns when it is worth while to ask for the lock again.
func (l *locker) wait(ctx context.Context) error {
	for index := uint64(0); ; {
		all, next, err := l.cl.WatchKV(ctx, l.key, index, watchWait)
		if err != nil {
			return err
		}
		switch {
		case len(all) == 1 && all[0].Flags != lockFlags:
			return errors.New("the key is there and is no lock; choose another")
		case len(all) == 1 && all[0].Session != "":
			index = next
			continue
		case index != 0:
			return nil // it has just been released
		}
		select {
		case <-ctx.Done():
		case <-time.After(lockPause):
		}
		return nil
	}
}

// watch follows the lock until ctx ends or the lock is another's.
func (l *locker) watch(ctx context.Context, session string) error {
	for index := uint64(0); ; {
		all, next, err := l.cl.WatchKV(ctx, l.key, index, watchWait)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			// Whether the session still lives is for renew to find out.
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(lockPause):
			}
			index = 0
			continue
		case len(all) != 1 || all[0].Session != session:
			return fmt.Errorf("%w: it was taken away", errLockLost)
		}
		index = next
	}
}

// runCommand runs the command and passes signals on to it, until it has ended or
// the lock is lost.
func (l *locker) runCommand(hold context.Context, signals <-chan os.Signal) error {
	//nolint:gosec // running what the user named is the purpose
	cmd := exec.Command(l.command[0], l.command[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = l.stdin, l.stdout, l.stderr
	cmd.Env = append(os.Environ(), "CONSUL_LOCK_HELD=true")
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("lock %s: %w", l.key, err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	// A process that has ended takes no signal, which is no fault.
	tell := func(s os.Signal) { _ = cmd.Process.Signal(s) }
	var kill <-chan time.Time
	lost := hold.Done()
	for {
		select {
		case s := <-signals:
			tell(s)
		case <-lost:
			lost = nil
			tell(syscall.SIGTERM)
			kill = time.After(lockGrace)
		case <-kill:
			tell(syscall.SIGKILL)
		case err := <-ended:
			if lost == nil {
				return fmt.Errorf("lock %s: %w; the command was ended", l.key, context.Cause(hold))
			}
			return commandStatus(err)
		}
	}
}

// commandStatus turns the end of a command into our own.
func commandStatus(err error) error {
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		return err
	}
	if s, ok := exit.Sys().(syscall.WaitStatus); ok && s.Signaled() {
		return exitError(statusSignal + int(s.Signal()))
	}
	return exitError(exit.ExitCode())
}

// release gives the lock back, removes its entry unless somebody else has it by
// now, and ends the session. What fails is made good by the session's TTL.
func (l *locker) release(session string) {
	ctx, cancel := context.WithTimeout(context.Background(), lockGrace)
	defer cancel()
	if ok, err := l.cl.ReleaseKV(ctx, api.KV{Key: l.key, Flags: lockFlags, Session: session}); err == nil && ok {
		if kv, err := l.cl.KV(ctx, l.key); err == nil && kv.Session == "" {
			_, _ = l.cl.DeleteKV(ctx, l.key, &kv.ModifyIndex)
		}
	}
	_ = l.cl.DestroySession(ctx, session)
}
