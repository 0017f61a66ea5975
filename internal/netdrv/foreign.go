package netdrv

import (
	"context"
	"encoding/binary"
	"fmt"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	mdnetlink "github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// deepestJump is how many jumps the kernel follows.
const deepestJump = 16

// familyNames are nft's words for the families that have a forward hook with
// our traffic in it.
var familyNames = map[nftables.TableFamily]string{
	nftables.TableFamilyINet: "inet", nftables.TableFamilyIPv4: "ip", nftables.TableFamilyIPv6: "ip6", nftables.TableFamilyBridge: "bridge",
}

// ForeignDrops names the foreign base chains at the forward hook that would drop
// traffic no rule of theirs lets through: "table inet filter chain forward
// (policy drop)". An accept in our own table does not overrule them. A chain is
// judged by its policy and its rules without a condition, jumps followed; rules
// with conditions are taken not to match, so a named chain may let some of our
// traffic through. Rules of iptables are seen if they are iptables-nft's.
func (h *Host) ForeignDrops(ctx context.Context) ([]string, error) {
	if err := live(ctx, "look for foreign packet filters"); err != nil {
		return nil, err
	}
	c, err := h.nft()
	if err != nil {
		return nil, err
	}
	defer closeNFT(c)
	chains, err := c.ListChains()
	if err != nil {
		return nil, fmt.Errorf("list chains: %w", err)
	}
	rules, err := h.dumpRules()
	if err != nil {
		return nil, err
	}
	var found []string
	for _, ch := range chains {
		name, known := familyNames[ch.Table.Family]
		if !known || ch.Hooknum == nil || *ch.Hooknum != *nftables.ChainHookForward || ch.Type != nftables.ChainTypeFilter {
			continue
		}
		if ch.Table.Family == nftables.TableFamilyINet && ch.Table.Name == TableName {
			continue
		}
		end := rules.end(chainKey{ch.Table.Family, ch.Table.Name, ch.Name}, deepestJump)
		why := ""
		switch {
		case end == endDrop:
			why = "a rule drops everything"
		case end == endPolicy && ch.Policy != nil && *ch.Policy == nftables.ChainPolicyDrop:
			why = "policy drop"
		default:
			continue
		}
		found = append(found, fmt.Sprintf("table %s %s chain %s (%s)", name, ch.Table.Name, ch.Name, why))
	}
	return found, nil
}

type chainKey struct {
	family nftables.TableFamily
	table  string
	chain  string
}

// ending is what becomes of a packet that no condition matches.
type ending int

const (
	endPolicy ending = iota // it meets the end of the chain
	endAccept
	endDrop
)

// step is an unconditional rule's verdict.
type step struct {
	kind   expr.VerdictKind
	target string // of a jump
}

// ruleset is the unconditional rules of every chain.
type ruleset map[chainKey][]step

func (r ruleset) end(k chainKey, depth int) ending {
	if depth == 0 {
		return endPolicy
	}
	for _, s := range r[k] {
		switch s.kind {
		case expr.VerdictAccept:
			return endAccept
		case expr.VerdictDrop:
			return endDrop
		case expr.VerdictReturn:
			return endPolicy
		case expr.VerdictGoto:
			return r.end(chainKey{k.family, k.table, s.target}, depth-1)
		case expr.VerdictJump:
			if e := r.end(chainKey{k.family, k.table, s.target}, depth-1); e != endPolicy {
				return e
			}
		}
	}
	return endPolicy
}

// dumpRules reads every table's rules. It decodes them itself: a rule with an
// expression that a library does not know must count as one with a condition.
func (h *Host) dumpRules() (ruleset, error) {
	c, err := mdnetlink.Dial(unix.NETLINK_NETFILTER, &mdnetlink.Config{NetNS: int(h.ns.Fd())})
	if err != nil {
		return nil, fmt.Errorf("open nftables: %w", err)
	}
	defer closeQuietly(c)
	if err := c.SetDeadline(time.Now().Add(netlinkTimeout)); err != nil {
		return nil, err
	}
	messages, err := c.Execute(mdnetlink.Message{
		Header: mdnetlink.Header{
			Type:  mdnetlink.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETRULE),
			Flags: mdnetlink.Request | mdnetlink.Dump,
		},
		Data: []byte{unix.NFPROTO_UNSPEC, unix.NFNETLINK_V0, 0, 0},
	})
	if err != nil {
		return nil, fmt.Errorf("list rules: %w", err)
	}
	all := ruleset{}
	for _, m := range messages {
		if len(m.Data) < 4 {
			continue
		}
		key := chainKey{
			family: nftables.TableFamily(m.Data[0]),
			table:  attribute(m.Data[4:], unix.NFTA_RULE_TABLE),
			chain:  attribute(m.Data[4:], unix.NFTA_RULE_CHAIN),
		}
		if s, ok := unconditional(m.Data[4:]); ok {
			all[key] = append(all[key], s)
		}
	}
	return all, nil
}

// unconditional returns the verdict of a rule that matches every packet.
func unconditional(rule []byte) (s step, ok bool) {
	for name, data := range expressions(rule) {
		switch name {
		case "counter", "log", "notrack":
		case "reject":
			return step{kind: expr.VerdictDrop}, true
		case "match": // of iptables
			if attribute(data, unix.NFTA_MATCH_NAME) != "comment" {
				return step{}, false
			}
		case "target": // of iptables
			switch attribute(data, unix.NFTA_TARGET_NAME) {
			case "REJECT":
				return step{kind: expr.VerdictDrop}, true
			case "LOG", "NFLOG", "TRACE", "CT":
			default:
				return step{}, false
			}
		case "immediate":
			s, ok = immediateVerdict(data)
			return s, ok
		default:
			return step{}, false
		}
	}
	return step{}, false
}

// expressions yields a rule's expressions as name and data.
func expressions(rule []byte) func(func(string, []byte) bool) {
	return func(yield func(string, []byte) bool) {
		list, _ := child(rule, unix.NFTA_RULE_EXPRESSIONS)
		d, err := mdnetlink.NewAttributeDecoder(list)
		if err != nil {
			return
		}
		for d.Next() {
			data, _ := child(d.Bytes(), unix.NFTA_EXPR_DATA)
			if !yield(attribute(d.Bytes(), unix.NFTA_EXPR_NAME), data) {
				return
			}
		}
	}
}

func immediateVerdict(data []byte) (step, bool) {
	value, _ := child(data, unix.NFTA_IMMEDIATE_DATA)
	v, ok := child(value, unix.NFTA_DATA_VERDICT)
	if !ok {
		return step{}, false
	}
	code, ok := child(v, unix.NFTA_VERDICT_CODE)
	if !ok || len(code) != 4 {
		return step{}, false
	}
	// The kernel's numbers and the library's differ for those it shares with
	// netfilter.
	s := step{target: attribute(v, unix.NFTA_VERDICT_CHAIN)}
	switch int32(binary.BigEndian.Uint32(code)) {
	case 0:
		s.kind = expr.VerdictDrop
	case 1:
		s.kind = expr.VerdictAccept
	case unix.NFT_RETURN:
		s.kind = expr.VerdictReturn
	case unix.NFT_JUMP:
		s.kind = expr.VerdictJump
	case unix.NFT_GOTO:
		s.kind = expr.VerdictGoto
	default:
		return step{}, false
	}
	return s, true
}

// child returns the content of an attribute.
func child(data []byte, kind uint16) ([]byte, bool) {
	d, err := mdnetlink.NewAttributeDecoder(data)
	if err != nil {
		return nil, false
	}
	for d.Next() {
		if d.Type() == kind {
			return d.Bytes(), true
		}
	}
	return nil, false
}
