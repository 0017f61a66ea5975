package testlab

import (
	"errors"
	"runtime"

	"golang.org/x/sys/unix"
)

var errGoexit = errors.New("the function ended its goroutine (t.FailNow inside Do)")

// onOwnThread runs fn on a thread that ends afterwards, so that whatever namespaces fn enters are never seen by another
// goroutine. The process's first thread is never used: it stands for the whole process in /proc, and it cannot end.
func onOwnThread(fn func()) {
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() != unix.Getpid() {
			fn() // the thread stays locked, and so ends with this goroutine
			return
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			runtime.LockOSThread() // cannot be the first thread: the goroutine that waits here holds that one
			fn()
		}()
		<-done
		runtime.UnlockOSThread()
	}()
}

// A thread is an operating system thread that lives in one set of namespaces until it is closed. Processes are forked from
// it: they inherit its namespaces without a wrapper, and the kernel kills them when the thread dies with the test process.
type thread struct {
	calls chan func()
	gone  chan struct{}
}

func newThread(enter func() error) (*thread, error) {
	th := &thread{calls: make(chan func()), gone: make(chan struct{})}
	entered := make(chan error, 1)
	onOwnThread(func() {
		defer close(th.gone)
		err := enter()
		entered <- err
		if err != nil {
			return
		}
		for call := range th.calls {
			call()
		}
	})
	if err := <-entered; err != nil {
		<-th.gone
		return nil, err
	}
	return th, nil
}

// run calls fn on the thread, one call at a time.
func (th *thread) run(fn func() error) error {
	result := make(chan error, 1)
	select {
	case th.calls <- func() { result <- fn() }:
		return <-result
	case <-th.gone:
		return errors.New("the host is gone")
	}
}

func (th *thread) close() {
	close(th.calls)
	<-th.gone
}
