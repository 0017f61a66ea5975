package state

import "github.com/fairlead-net/fairlead/internal/model"

// Settings returns all cluster-wide settings, sorted by name.
func (s *Snapshot) Settings() []*model.Setting {
	list, _ := s.settings.all()
	return list
}
