package main

import (
	"math"
	"os"
	"testing"
	"time"
)

func TestHistogramBuckets(t *testing.T) {
	for ns := uint64(1); ns < 1<<45; ns = ns*9/8 + 1 {
		bucket := bucketOf(ns)
		upper := upperBound(bucket)
		if upper < ns || float64(upper) > float64(ns)*(1+1./64) {
			t.Fatalf("%d ns is in bucket %d, up to %d ns", ns, bucket, upper)
		}
		if bucketOf(upper) != bucket || bucketOf(upper+1) != bucket+1 {
			t.Fatalf("bucket %d ends at %d ns: the next is not %d", bucket, upper, bucketOf(upper+1))
		}
	}
	if b := bucketOf(math.MaxUint64); b >= len((&histogram{}).counts) {
		t.Errorf("bucket %d is outside", b)
	}
}

func TestHistogramPercentiles(t *testing.T) {
	h := &histogram{}
	if h.percentile(0.5) != 0 {
		t.Error("an empty histogram has a median")
	}
	for ms := 1; ms <= 1000; ms++ {
		h.add(time.Duration(ms) * time.Millisecond)
	}
	for p, want := range map[float64]float64{0: 1, 0.5: 501, 0.99: 991, 1: 1000} {
		if got := millis(h.percentile(p)); got < want || got > want*1.017 {
			t.Errorf("percentile %v is %v ms, want %v", p, got, want)
		}
	}
}

func TestMedian(t *testing.T) {
	for _, test := range []struct {
		values []float64
		want   float64
	}{{nil, 0}, {[]float64{3}, 3}, {[]float64{9, 1, 5}, 5}, {[]float64{4, 1, 3, 2}, 2.5}} {
		if got := median(test.values); got != test.want {
			t.Errorf("median of %v is %v, want %v", test.values, got, test.want)
		}
	}
}

func TestParseStat(t *testing.T) {
	stat := "4711 (a (b) c) S 1 2 3 4 5 6 7 8 9 10 120 35 0 0 20 0 9 0 100 1 2"
	got, err := parseStat([]byte(stat))
	if err != nil || got != 1550*time.Millisecond {
		t.Errorf("%v, %v; want 1.55s", got, err)
	}
	for _, bad := range []string{"", "1 (x) S 1 2", "1 (x) S 1 2 3 4 5 6 7 8 9 10 a b 0 0"} {
		if _, err := parseStat([]byte(bad)); err == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
}

func TestParseMachine(t *testing.T) {
	got, err := parseMachine("cpu  100 10 50 9999 777 1 2 3 40 0\ncpu0 1 2 3\n")
	if err != nil || got != 1660*time.Millisecond {
		t.Errorf("%v, %v; want 1.66s", got, err)
	}
	for _, bad := range []string{"", "cpu 1 2", "intr 1 2 3 4 5 6 7 8 9", "cpu 1 2 x 4 5 6 7 8 9"} {
		if _, err := parseMachine(bad); err == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
}

func TestParseRSS(t *testing.T) {
	got, err := parseRSS("Name:\tx\nVmHWM:\t  9999 kB\nVmRSS:\t  2560 kB\nRssAnon:\t 1 kB\n")
	if err != nil || got != 2.5 {
		t.Errorf("%v MiB, %v; want 2.5", got, err)
	}
	for _, bad := range []string{"", "VmRSS:\t x kB\n"} {
		if _, err := parseRSS(bad); err == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
}

func TestOwnProcessIsRead(t *testing.T) {
	if _, err := cpuTime(os.Getpid()); err != nil {
		t.Error(err)
	}
	if mib, err := rss(os.Getpid()); err != nil || mib < 1 {
		t.Errorf("%v MiB, %v", mib, err)
	}
	if _, err := machineTime(); err != nil {
		t.Error(err)
	}
}
