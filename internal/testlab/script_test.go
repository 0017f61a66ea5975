package testlab

import (
	"errors"
	"testing"
)

func TestStories(t *testing.T) {
	Require(t, Root, Tool("busybox"), Tool("nft"))
	greet := func(s *Story, neg bool, args []string) error {
		if neg || len(args) != 1 {
			return errors.New("usage: greet HOST")
		}
		h, err := s.Host(args[0])
		if err != nil {
			return err
		}
		_, err = s.TS.Stdout().Write([]byte("hello " + h.Name() + "\n"))
		return err
	}
	setup := func(s *Story) error {
		s.Env.Setenv("greeting", "hello")
		return nil
	}
	RunScripts(t, "testdata/stories", setup, map[string]Command{"greet": greet})
}
