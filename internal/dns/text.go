package dns

import (
	"maps"
	"slices"
	"strings"

	miekg "github.com/miekg/dns"
)

// maxString is the length of one string of a TXT record, in bytes.
const maxString = 255

// rawPrefix begins the keys whose values stand alone in their TXT record: what
// they mean is the owner's business.
const rawPrefix = "rfc1035-"

// text answers with metadata as TXT records, "key=value" as RFC 1464 writes it,
// each once.
func (a *answering) text(meta map[string]string) {
	for _, k := range slices.Sorted(maps.Keys(meta)) {
		txt := meta[k]
		if !strings.HasPrefix(strings.ToLower(k), rawPrefix) {
			txt = attribute(k) + "=" + txt
		}
		if a.texts == nil {
			a.texts = map[string]bool{}
		}
		if !a.texts[txt] {
			a.texts[txt] = true
			a.add(&miekg.TXT{Hdr: a.header(miekg.TypeTXT), Txt: txtStrings(txt)})
		}
	}
}

// attribute is the name of an attribute of RFC 1464: "=", "`" and blanks at the
// ends are quoted with "`".
func attribute(key string) string {
	inner := strings.Trim(key, " \t")
	if inner == "" {
		return quoteBlanks(key)
	}
	i := strings.Index(key, inner)
	return quoteBlanks(key[:i]) + strings.NewReplacer("`", "``", "=", "`=").Replace(inner) + quoteBlanks(key[i+len(inner):])
}

func quoteBlanks(s string) string { return strings.NewReplacer(" ", "` ", "\t", "`\t").Replace(s) }

// txtStrings cuts s into the strings of a TXT record, escaped as package miekg
// wants them.
func txtStrings(s string) []string {
	var all []string
	for len(s) > maxString {
		all, s = append(all, s[:maxString]), s[maxString:]
	}
	all = append(all, s)
	for i := range all {
		all[i] = strings.ReplaceAll(all[i], `\`, `\\`)
	}
	return all
}
