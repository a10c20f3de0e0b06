"""The published shapes of services' credentials, as data.

Each rule is a name, a pattern (RE2 syntax), an example that it must find and a near miss that it must leave. Examples are
templates, so that no scanner takes this file for a leak: `{A52}` stands for 52 letters and digits, `{H40}` for hexadecimal,
`{D10}` for digits, `{U16}` for upper-case letters and digits, `{L20}` for lower-case letters and digits.
`tests/quality/test_redact.py` proves every line.

Source: the issuers' documentation. Prefixes are facts; no rule file of others is copied.
"""

from __future__ import annotations

import re
from typing import NamedTuple


class SecretRule(NamedTuple):
    """A credential that its shape gives away. No letter or digit may touch it on either side."""

    name: str
    pattern: str
    example: str
    near_miss: str
    # Looked for only where this text stands: the pattern does not begin with a prefix, so it would be tried everywhere.
    needs: str = ""


SECRET_RULES: tuple[SecretRule, ...] = tuple(
    SecretRule(*rule)
    for rule in (
        # Models
        ("openai, anthropic, openrouter, deepseek", r"sk-[\w-]{20,}", "sk-proj-{A48}", "sk-{L8}"),
        ("together", r"tgp_v1_[\w-]{20,}", "tgp_v1_{A43}", "tgp_v1_{A5}"),
        ("groq", r"gsk_[A-Za-z0-9]{20,}", "gsk_{A52}", "gsk_{A6}"),
        ("xai", r"xai-[A-Za-z0-9]{20,}", "xai-{A80}", "xai-{L6}"),
        ("replicate", r"r8_[A-Za-z0-9]{20,}", "r8_{A37}", "r8_{A6}"),
        ("perplexity", r"pplx-[A-Za-z0-9]{20,}", "pplx-{A48}", "pplx-{L5}"),
        ("hugging face", r"(?:hf|api_org)_[A-Za-z0-9]{24,}", "hf_{A34}", "hf_{L8}"),
        ("nvidia", r"nvapi-[\w-]{20,}", "nvapi-{A64}", "nvapi-{A4}"),
        ("fireworks", r"fw_[A-Za-z0-9]{20,}", "fw_{A24}", "fw_{L6}"),
        ("cerebras", r"csk-[a-z0-9]{32,}", "csk-{L48}", "csk-{L8}"),
        ("tavily", r"tvly-[A-Za-z0-9-]{20,}", "tvly-{A32}", "tvly-{A6}"),
        ("firecrawl", r"fc-[a-f0-9]{32}", "fc-{H32}", "fc-{H8}"),
        ("langsmith", r"(?:lsv2_(?:pt|sk)_[a-f0-9]{32}_[a-f0-9]{8,})", "lsv2_pt_{H32}_{H10}", "lsv2_pt_{H8}"),
        ("langfuse", r"sk-lf-[a-f0-9-]{20,}", "sk-lf-{H8}-{H4}-{H4}-{H4}-{H12}", "sk-lf-{H4}"),
        ("pinecone", r"pcsk_[\w-]{30,}", "pcsk_{A60}", "pcsk_{A6}"),
        ("jina", r"jina_[A-Za-z0-9_-]{30,}", "jina_{A60}", "jina_{L8}"),
        ("voyage", r"pa-[A-Za-z0-9_-]{40,}", "pa-{A43}", "pa-{L10}"),
        ("elevenlabs", r"sk_[a-f0-9]{40,}", "sk_{H48}", "sk_{H10}"),
        ("stripe, clerk", r"(?:sk|rk|pk)_(?:live|test|prod)_[\w-]{10,}", "sk_live_{A24}", "sk_live_{A3}"),
        # Clouds
        ("aws access key id", r"(?:A3T[A-Z0-9]|AKIA|ASIA|ABIA|ACCA|AROA|AIDA)[A-Z0-9]{16}", "AKIA{U16}", "AKIA{U4}"),
        ("aws bedrock", r"(?:ABSK[A-Za-z0-9+/]{80,}={0,2}|bedrock-api-key-[\w-]{20,}={0,2})", "ABSK{A110}", "ABSK{A8}"),
        ("google api key", r"AIza[\w-]{35}", "AIza{A35}", "AIza{A5}"),
        ("google oauth secret", r"GOCSPX-[\w-]{20,}", "GOCSPX-{A28}", "GOCSPX-{A4}"),
        ("google access token", r"ya29\.[\w-]{20,}", "ya29.{A60}", "ya29.{A5}"),
        ("google refresh token", r"1//0[\w-]{20,}", "1//0{A40}", "1//0{A6}"),
        ("azure ad secret", r"[\w.~]{3}[0-9]Q~[\w.~-]{31,34}", "aB18Q~{A34}", "aB18Q~{A4}", "Q~"),
        ("azure storage", r"[A-Za-z0-9+/]{76}(?:\+?(?:ASt|ACDb|AzSe|AzFu|ARm|AIoT)[A-Za-z0-9+/]{5}==|[A-Za-z0-9+/]{10}==)",
         "{A86}==", "{A40}==", "=="),
        ("alibaba", r"LTAI[A-Za-z0-9]{12,20}", "LTAI{A20}", "LTAI{A4}"),
        ("tencent", r"AKID[A-Za-z0-9]{32}", "AKID{A32}", "AKID{A8}"),
        ("digitalocean", r"do[opr]_v1_[a-f0-9]{64}", "dop_v1_{H64}", "dop_v1_{H8}"),
        ("heroku", r"HRKU-[\w-]{30,}", "HRKU-AA{A58}", "HRKU-{A6}"),
        ("flyio", r"(?:fo1_[\w-]{40,}|fm[12][ar]?_[A-Za-z0-9+/]{60,}={0,3})", "fo1_{A43}", "fo1_{A6}"),
        ("cloudflare", r"(?:v1\.0-[a-f0-9]{24}-[a-f0-9]{100,}|cf(?:ut|at|k)_[A-Za-z0-9]{30,})",
         "v1.0-{H24}-{H146}", "v1.0-{H8}"),
        ("1password service account", r"ops_eyJ[A-Za-z0-9+/]{60,}={0,3}", "ops_eyJ{A250}", "ops_eyJ{A9}"),
        ("scalingo", r"tk-us-[\w-]{40,}", "tk-us-{A48}", "tk-us-{A6}"),
        ("yandex", r"(?:AQVN[\w-]{35,38}|y[0-3]_[\w-]{40,}|t1\.[\w-]{20,}={0,2}\.[\w-]{60,}={0,2})",
         "AQVN{A36}", "AQVN{A6}"),
        ("render", r"rnd_[A-Za-z0-9]{28,}", "rnd_{A32}", "rnd_{A8}"),
        ("vercel", r"(?:vcp|vci|vca|vcr|vck)_[A-Za-z0-9]{24,}", "vcp_{A56}", "vcp_{A6}"),
        ("netlify", r"nf[pcou]_[A-Za-z0-9]{36,}", "nfp_{A36}", "nfp_{A6}"),
        ("supabase", r"sb(?:p|_secret|_publishable)_[\w-]{20,}", "sbp_{H40}", "sbp_{H8}"),
        ("neon", r"(?:napi_[a-z0-9]{40,}|npg_[A-Za-z0-9]{10,})", "napi_{L64}", "napi_{L8}"),
        ("planetscale", r"pscale_(?:tkn|oauth|pw)_[\w=.-]{20,}", "pscale_tkn_{A43}", "pscale_tkn_{A5}"),
        ("databricks", r"dapi[a-f0-9]{32}(?:-[0-9])?", "dapi{H32}", "dapi{H8}"),
        ("clickhouse", r"4b1d[A-Za-z0-9]{38}", "4b1d{A38}", "4b1d{A8}"),
        ("vault", r"hv[sbr]\.[\w-]{20,}", "hvs.{A95}", "hvs.{A4}"),
        ("terraform", r"[A-Za-z0-9]{14}\.atlasv1\.[\w=-]{60,70}", "{A14}.atlasv1.{A67}", "{A14}.atlasv1.{A9}", ".atlasv1."),
        ("doppler", r"dp\.(?:pt|st|ct|sa|scim|audit)\.(?:[a-z0-9_-]+\.)?[A-Za-z0-9]{40,44}", "dp.pt.{A43}", "dp.pt.{A8}"),
        ("pulumi", r"pul-[a-f0-9]{40}", "pul-{H40}", "pul-{H8}"),
        ("infracost", r"ico-[A-Za-z0-9]{32}", "ico-{A32}", "ico-{A8}"),
        ("1password", r"A3-[A-Z0-9]{6}-(?:[A-Z0-9]{11}|[A-Z0-9]{6}-[A-Z0-9]{5})(?:-[A-Z0-9]{5}){3}",
         "A3-{U6}-{U6}-{U5}-{U5}-{U5}-{U5}", "A3-{U6}-{U6}"),
        ("age", r"AGE-SECRET-KEY-1[A-Z0-9]{58}", "AGE-SECRET-KEY-1{U58}", "AGE-SECRET-KEY-1{U8}"),
        # Code and packages
        ("github", r"gh[opusr]_[A-Za-z0-9_]{30,}", "ghp_{A36}", "ghp_{A8}"),
        ("github fine-grained", r"github_pat_\w{22,}", "github_pat_{A22}_{A59}", "github_pat_{A5}"),
        ("gitlab", r"gl(?:pat|oas|dt|rt|cbt|ptt|ft|imt|agent|soat|ffct|wt)-[\w.-]{20,}", "glpat-{A20}", "glpat-{A6}"),
        ("gitlab runner", r"GR1348941[\w-]{20,}", "GR1348941{A20}", "GR1348941{A4}"),
        ("bitbucket, atlassian", r"(?:ATATT3|ATBB|ATCTT3|ATSTT3)[\w=-]{24,}", "ATATT3{A186}", "ATATT3{A6}"),
        ("npm", r"npm_[A-Za-z0-9]{36,}", "npm_{A36}", "npm_{L8}"),
        ("pypi", r"pypi-[\w-]{50,}", "pypi-AgEIcHlwaS5vcmc{A60}", "pypi-{L8}"),
        ("rubygems", r"rubygems_[a-f0-9]{48}", "rubygems_{H48}", "rubygems_{H8}"),
        ("crates", r"cio[A-Za-z0-9]{32}", "cio{A32}", "cio{A8}"),
        ("nuget", r"oy2[a-z0-9]{43}", "oy2{L43}", "oy2{L9}"),
        ("clojars", r"CLOJARS_[a-z0-9]{60}", "CLOJARS_{L60}", "CLOJARS_{L6}"),
        ("docker hub", r"dckr_(?:pat|oat)_[\w-]{20,}", "dckr_pat_{A27}", "dckr_pat_{A5}"),
        ("artifactory", r"(?:AKCp[A-Za-z0-9]{60,}|cmVmd[A-Za-z0-9]{59})", "AKCp{A69}", "AKCp{A9}"),
        ("sourcegraph", r"(?:sgp|slk)_(?:[a-fA-F0-9]{16}_|local_)?[a-fA-F0-9]{40,64}", "sgp_{H40}", "sgp_{H8}"),
        ("sonar", r"sq[upa]_[a-f0-9]{40}", "squ_{H40}", "squ_{H8}"),
        ("circleci", r"CCI(?:PAT|PRJ)_[A-Za-z0-9]{22}_[a-f0-9]{40}", "CCIPAT_{A22}_{H40}", "CCIPAT_{A8}"),
        ("buildkite", r"bk(?:ua|aj|ct|at)_[A-Za-z0-9]{30,}", "bkua_{H40}", "bkua_{H6}"),
        ("octopus", r"API-[A-Z0-9]{26,}", "API-{U26}", "API-{U6}"),
        ("prefect", r"pn[ub]_[A-Za-z0-9]{36}", "pnu_{A36}", "pnu_{A6}"),
        ("postman", r"PMAK-[a-f0-9]{24}-[a-f0-9]{34}", "PMAK-{H24}-{H34}", "PMAK-{H8}"),
        ("readme", r"rdme_[a-z0-9]{70}", "rdme_{L70}", "rdme_{L8}"),
        ("harness", r"[ps]at\.[\w-]{22}\.[A-Za-z0-9]{24}\.[A-Za-z0-9]{20}", "pat.{A22}.{A24}.{A20}", "pat.{A5}.{A5}"),
        ("figma", r"fig[dour]_[\w-]{30,}", "figd_{A40}", "figd_{A6}"),
        ("linear", r"lin_(?:api|oauth)_[A-Za-z0-9]{32,}", "lin_api_{A40}", "lin_api_{A6}"),
        ("notion", r"(?:ntn_[A-Za-z0-9]{40,}|secret_[A-Za-z0-9]{43})", "ntn_{D11}{A35}", "ntn_{D5}"),
        ("airtable", r"pat[A-Za-z0-9]{14}\.[a-f0-9]{64}", "pat{A14}.{H64}", "pat{A14}.{H6}"),
        ("asana", r"[12]/[0-9]{13,}(?:/[0-9]{10,})?:[a-f0-9]{32}", "1/{D16}:{H32}", "1/{D16}:{H3}"),
        ("typeform", r"tfp_[\w.=-]{40,}", "tfp_{A44}_{A14}", "tfp_{A6}"),
        ("contentful", r"CFPAT-[\w-]{40,}", "CFPAT-{A43}", "CFPAT-{A6}"),
        ("frameio", r"fio-u-[\w=-]{60,}", "fio-u-{A64}", "fio-u-{A6}"),
        ("dynatrace", r"dt0[a-z][0-9]{2}\.[A-Za-z0-9]{8,24}\.[A-Za-z0-9]{64}", "dt0c01.{U24}.{U64}", "dt0c01.{U8}"),
        ("grafana", r"(?:glc_[A-Za-z0-9+/]{32,}={0,3}|glsa_[A-Za-z0-9]{32}_[A-Fa-f0-9]{8})", "glsa_{A32}_{H8}", "glsa_{A8}"),
        ("new relic", r"NR(?:AK|II|JS|RA|AA)-[A-Za-z0-9-]{19,}", "NRAK-{U27}", "NRAK-{U5}"),
        ("sentry", r"(?:sntrys_eyJ[A-Za-z0-9+/=_-]{40,}|sntryu_[a-f0-9]{64})", "sntryu_{H64}", "sntryu_{H8}"),
        ("posthog", r"ph[xcs]_[A-Za-z0-9]{32,}", "phx_{A43}", "phx_{A6}"),
        ("datadog", r"dd(?:apikey|app|pat)_[A-Za-z0-9]{20,}", "ddapp_{A34}", "ddapp_{A5}"),
        ("openshift", r"sha256~[\w-]{43}", "sha256~{A43}", "sha256~{A8}"),
        ("tailscale", r"tskey-(?:[a-z]+-)?[A-Za-z0-9]{6,}-[A-Za-z0-9]{12,}", "tskey-auth-{A17}-{A32}", "tskey-{L4}"),
        ("defined networking", r"dnkey-[\w=-]{26}-[\w=-]{52}", "dnkey-{A26}-{A52}", "dnkey-{A6}"),
        ("maxmind", r"[A-Za-z0-9]{6}_[A-Za-z0-9]{29}_mmk", "{A6}_{A29}_mmk", "{A6}_{A5}_mmk", "_mmk"),
        # Messages
        ("slack", r"xox[abceoprs](?:\.xox[bp])?-[A-Za-z0-9-]{10,}", "xoxb-{D12}-{D12}-{A24}", "xoxb-{D4}"),
        ("slack app", r"xapp-[0-9]-[A-Za-z0-9-]{10,}", "xapp-1-{U11}-{D13}-{H64}", "xapp-1-{A3}"),
        ("slack webhook", r"hooks\.slack(?:-gov)?\.com/(?:services|workflows|triggers)/[A-Za-z0-9+/_-]{20,}",
         "hooks.slack.com/services/T{U8}/B{U10}/{A24}", "hooks.slack.com/services/T{U3}"),
        ("discord webhook", r"(?:discord|discordapp)\.com/api/(?:v[0-9]{1,2}/)?webhooks/[0-9]{15,20}/[\w-]{40,}",
         "discord.com/api/webhooks/{D18}/{A68}", "discord.com/api/webhooks/{D5}"),
        ("teams webhook", r"[a-z0-9-]+\.webhook\.office\.com/webhookb2/[A-Za-z0-9@/-]{60,}",
         "acme.webhook.office.com/webhookb2/{H36}@{H36}/IncomingWebhook/{H32}/{H36}", "acme.webhook.office.com/{H5}", ".webhook.office.com"),
        ("zapier, ifttt, n8n hooks", r"(?:hooks\.zapier\.com/hooks/catch/[0-9]{4,}/[a-z0-9]{6,}|maker\.ifttt\.com/[\w/]{4,}/key/[\w-]{20,})",
         "hooks.zapier.com/hooks/catch/{D7}/{L7}", "hooks.zapier.com/hooks/catch/{D2}"),
        ("discord bot", r"[MNO][\w-]{23,27}\.[\w-]{6}\.[\w-]{27,}", "MTA{A21}.{A6}.{A38}", "MTA{A9}.{A6}.{A4}"),
        ("telegram", r"(?:bot)?[0-9]{8,10}:AA[\w-]{33}", "{D10}:AA{A33}", "{D10}:AA{A5}", ":AA"),
        ("twilio", r"SK[a-f0-9]{32}", "SK{H32}", "SK{H8}"),
        ("sendgrid", r"SG\.[\w-]{16,}\.[\w-]{16,}", "SG.{A22}.{A43}", "SG.{A4}.{A4}"),
        ("mailgun", r"(?:key|pubkey)-[a-f0-9]{32}", "key-{H32}", "key-{H8}"),
        ("mailchimp", r"[a-f0-9]{32}-us[0-9]{1,2}", "{H32}-us12", "{H8}-us12", "-us"),
        ("brevo", r"xkeysib-[a-f0-9]{64}-[A-Za-z0-9]{16}", "xkeysib-{H64}-{A16}", "xkeysib-{H8}"),
        ("resend", r"re_[A-Za-z0-9]{6,}_[A-Za-z0-9]{16,}", "re_{A8}_{A24}", "re_{L4}_{L5}"),
        ("mapbox", r"[ps]k\.eyJ[\w-]{20,}\.[\w-]{20,}", "sk.eyJ{A57}.{A22}", "sk.eyJ{A4}.{A2}"),
        ("hubspot", r"pat-(?:na|eu|ap)[0-9]-[a-f0-9-]{36}", "pat-na1-{H8}-{H4}-{H4}-{H4}-{H12}", "pat-na1-{H4}"),
        # Money and shops
        ("stripe webhook", r"whsec_[A-Za-z0-9+/=]{16,}", "whsec_{A32}", "whsec_{A4}"),
        ("square", r"(?:EAAA[\w-]{22,60}|sq0(?:atp|csp|idp)-[\w-]{22,})", "sq0atp-{A22}", "sq0atp-{A4}"),
        ("shopify", r"shp(?:at|ca|pa|ss|ua|tka)_[a-fA-F0-9]{32}", "shpat_{H32}", "shpat_{H6}"),
        ("paypal braintree", r"access_token\$(?:production|sandbox)\$[a-z0-9]{16}\$[a-f0-9]{32}",
         "access_token$production${L16}${H32}", "access_token$production${L4}"),
        ("plaid", r"(?:access|public|link)-(?:sandbox|development|production)-[a-f0-9-]{36}",
         "access-production-{H8}-{H4}-{H4}-{H4}-{H12}", "access-production-{H4}"),
        ("flutterwave", r"FLWSECK(?:_TEST)?-[A-Za-z0-9]{12,}(?:-X)?", "FLWSECK_TEST-{H32}-X", "FLWSECK_TEST-{H4}"),
        ("duffel, shippo, easypost, lob", r"(?:(?:duffel|shippo)_(?:test|live)_[\w=-]{40,}|EZ[AT]K[A-Za-z0-9]{54})",
         "duffel_live_{A43}", "duffel_live_{A4}"),
        ("facebook", r"EAA[A-Z][A-Za-z0-9]{60,}", "EAAC{A120}", "EAAC{A9}"),
        ("instagram, facebook app", r"IG[A-Z]{2}[\w-]{80,}", "IGQV{A140}", "IGQV{A9}"),
        ("amazon mws", r"amzn\.mws\.[a-f0-9-]{36}", "amzn.mws.{H8}-{H4}-{H4}-{H4}-{H12}", "amzn.mws.{H4}"),
        ("amazon lwa", r"(?:amzn1\.oa2-cs\.v1\.[a-f0-9]{64}|Atz[ar]\|[\w|/+=-]{40,})",
         "amzn1.oa2-cs.v1.{H64}", "amzn1.oa2-cs.v1.{H4}"),
        ("adobe", r"p8e-[A-Za-z0-9]{32}", "p8e-{L32}", "p8e-{L6}"),
        ("dropbox", r"sl\.(?:u\.)?[\w=-]{100,}", "sl.{A135}", "sl.{A9}"),
        ("twitter bearer", r"A{21,22}[A-Za-z0-9]{8,}(?:%3D|%2F|%2B|[=/+])[A-Za-z0-9%=/+]{30,}", "AAAAAAAAAAAAAAAAAAAAAA{A25}%3D{A60}", "AAAAAAAAAAAAAAAAAAAAAA{A30}"),
        ("nostr", r"nsec1[a-z0-9]{58}", "nsec1{L58}", "nsec1{L9}"),
        ("hashes of passwords (crypt)", r"\$(?:1|2[abxy]|5|6|7|y|apr1|argon2(?:id|i|d))\$[A-Za-z0-9./+=,$-]{20,}",
         "$2b$12${A53}", "$2b$12${A3}"),
        ("authress", r"(?:sc|ext|scauth|authress)_[A-Za-z0-9]{5,30}\.[A-Za-z0-9]{4,6}\.acc[_-][A-Za-z0-9-]{10,32}\.[A-Za-z0-9+/_=-]{30,}",
         "sc_{A12}.{A5}.acc_{A12}.{A40}", "sc_{A12}.{A5}"),
        ("json web token", r"eyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]{8,}", "eyJ{A20}.eyJ{A40}.{A43}", "eyJ{A20}.abc"),
        ("json web token, encrypted", r"eyJ[\w-]{16,}\.[\w-]*\.[\w-]{8,}\.[\w-]{8,}\.[\w-]{8,}", "eyJ{A30}.{A40}.{A16}.{A40}.{A22}",
         "eyJ{A20}.{A4}"),
    )
)  # fmt: skip

_ALPHABETS = {
    "A": "a1B2c3D4e5F6g7H8i9J0kLmNoPqRsTuVwXyZ",
    "H": "0a1b2c3d4e5f6789",
    "D": "4820571936",
    "U": "A2B3C4D5E6F7GHIJKLMNOPQRSTUVWXYZ",
    "L": "a1b2c3d4e5f6g7h8i9j0klmnopqrstuvwxyz",
}


def fill(template: str) -> str:
    """An example as it would be met: `gsk_{A4}` -> `gsk_a1B2`."""

    def body(match: re.Match[str]) -> str:
        alphabet, length = _ALPHABETS[match[1]], int(match[2])
        return (alphabet * (length // len(alphabet) + 1))[:length]

    return re.sub(r"\{([AHDUL])([0-9]{1,3})\}", body, template)
