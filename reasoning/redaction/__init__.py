"""Personal data and secrets in prompts: found, replaced by placeholders, and put back into answers.

The rules need the extra `redact` (google-re2, phonenumberslite, python-stdnum, mnemonic). Nothing outside this package
imports them before they are used.
"""
