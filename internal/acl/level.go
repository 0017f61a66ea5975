package acl

// level is what a rule grants; each level includes those before it, and none is
// no rule at all. At one name deny beats every other level.
type level uint8

const (
	none level = iota
	deny
	read
	list
	write
)

var levels = map[string]level{"deny": deny, "read": read, "list": list, "write": write}

func (l level) String() string {
	for name, v := range levels {
		if v == l {
			return name
		}
	}
	return ""
}

// grants reports whether the level includes an access.
func (l level) grants(a Access) bool {
	want, ok := levels[string(a)]
	return ok && want > deny && l >= want
}

// stronger is what stands where two policies of one token speak of one name.
func stronger(a, b level) level {
	if a == deny || b == deny {
		return deny
	}
	return max(a, b)
}
