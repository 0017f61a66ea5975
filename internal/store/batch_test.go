package store

import (
	"fmt"
	"testing"
)

func TestWhichSetsMeet(t *testing.T) {
	cmp := func(k string) Txn { return Txn{Compares: []Compare{{Key: k}}, Puts: []Put{{Key: "own" + k}}} }
	cmpRange := func(k string) Txn { return Txn{Compares: []Compare{{Key: k, Prefix: true}}} }
	put := func(k string) Txn { return Txn{Puts: []Put{{Key: k}}} }
	del := func(k string) Txn { return Txn{Deletes: []string{k}} }
	delRange := func(k string) Txn { return Txn{DeletePrefixes: []string{k}} }
	read := func(k string) Txn { return Txn{Reads: []string{k}} }
	readRange := func(k string) Txn { return Txn{ReadPrefixes: []string{k}} }
	for i, tt := range []struct {
		a, b Txn
		meet bool
	}{
		{put("a"), put("b"), false},
		{put("a"), put("a"), true},
		{put("a"), del("a"), true},
		{put("a"), cmp("a"), true},
		{put("a"), read("a"), true},
		{put("a/b"), cmpRange("a/"), true},
		{put("a/b"), readRange("a/"), true},
		{put("a/b"), delRange("a/"), true},
		{put("ab"), delRange("a/"), false},
		{put("ab"), cmpRange("a/"), false},
		{cmp("a"), read("a"), false},
		{cmpRange("a"), cmpRange("a/b"), false},
		{readRange("a"), read("a"), false},
		{delRange("a/"), delRange("a/b"), true},
		{delRange("a/"), delRange("b/"), false},
		{delRange("a/"), cmpRange("a/b"), true},
		{delRange("a/b"), readRange("a/"), true},
		{delRange("a/"), read("a/b"), true},
		{delRange("a/"), cmp("a/b"), true},
		{del("a/b"), cmpRange("a/"), true},
		{del("a/b"), cmp("a/c"), false},
	} {
		for _, order := range [][2]Txn{{tt.a, tt.b}, {tt.b, tt.a}} {
			var s keySets
			s.add(&order[0])
			if got := s.meet(&order[1]); got != tt.meet {
				t.Errorf("case %d: %+v and %+v: %v", i, order[0], order[1], got)
			}
		}
	}
}

func queued(txns ...Txn) *queue {
	q := newQueue()
	for _, t := range txns {
		q.ops = append(q.ops, &op{txn: t, done: make(chan outcome, 1)})
	}
	return q
}

func TestTakeKeepsOrderAndLimits(t *testing.T) {
	sizes := func(q *queue) (got []int) {
		for {
			batch, _ := q.take()
			if len(batch) == 0 {
				return got
			}
			got = append(got, len(batch))
		}
	}
	big := func(k string) Txn { return Txn{Puts: []Put{{Key: k, Value: make([]byte, MaxTxnBytes/2)}}} }
	if got := sizes(queued(big("a"), big("b"), big("c"), put("d", ""))); fmt.Sprint(got) != "[1 1 2]" {
		t.Errorf("by bytes: %v", got)
	}
	if got := sizes(queued(put("a", ""), put("a", ""), put("b", ""), put("a", ""))); fmt.Sprint(got) != "[2 1 1]" {
		t.Errorf("by conflict: %v", got)
	}
	var many []Txn
	for i := range maxBatchTxns + 1 {
		many = append(many, put(fmt.Sprint(i), ""))
	}
	if got := sizes(queued(many...)); fmt.Sprint(got) != fmt.Sprintf("[%d 1]", maxBatchTxns) {
		t.Errorf("by number: %v", got)
	}
	wide := func(k string) Txn { return Txn{Deletes: make([]string, MaxTxnOps), Puts: []Put{{Key: k}}} }
	for i := range many[:3] {
		many[i] = wide(fmt.Sprint(i))
		for j := range many[i].Deletes {
			many[i].Deletes[j] = fmt.Sprint(i, "/", j)
		}
	}
	if got := sizes(queued(many[:3]...)); fmt.Sprint(got) != "[1 1 1]" {
		t.Errorf("by operations: %v", got)
	}
	q := queued(put("a", ""), put("b", ""))
	q.ops[0].gone = true
	if batch, _ := q.take(); len(batch) != 1 || batch[0].txn.Puts[0].Key != KVKey("b") {
		t.Errorf("took %d, a withdrawn one among them", len(batch))
	}
}
