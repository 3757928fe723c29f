(ns clojars.scp-test
  (:require [clojars.scp :as scp]
            [clojars.store :as store]
            [clojars.support :refer [bytes-of with-store]]
            [clojure.java.io :as io]
            [clojure.string :as str]
            [clojure.test :refer [deftest is testing]])
  (:import (java.io ByteArrayInputStream ByteArrayOutputStream EOFException StringWriter)))

(defn- session
  "What the receiver says, and whether all was stored, when a client sends these pieces."
  ([store pieces] (session store {:target [], :inside false} pieces))
  ([store asked pieces]
   (let [out (ByteArrayOutputStream.)
         stored? (binding [*out* (StringWriter.)]
                   (scp/receive! store (ByteArrayInputStream. (bytes-of (str/join pieces))) out asked))]
     {:said (String. (.toByteArray out) "US-ASCII"), :stored? stored?})))

(defn- content [store & path]
  (some-> (store/file store (vec path)) slurp))

(def ok "\u0000")

(deftest a-file-is-stored-and-acknowledged
  (with-store [store]
    (let [{:keys [said stored?]} (session store ["C0644 5 a.jar\n" "hello" ok])]
      (is (= (str ok ok ok) said))
      (is stored?)
      (is (= "hello" (content store "a.jar"))))))

(deftest an-empty-file-is-a-file
  (with-store [store]
    (is (:stored? (session store ["C0644 0 empty\n" ok])))
    (is (= "" (content store "empty")))))

(deftest several-files-come-in-one-session
  (with-store [store]
    (session store ["C0644 1 a\n" "1" ok "C0600 2 b\n" "22" ok])
    (is (= ["a" "b"] (store/files store)))))

(deftest directories-are-made-and-left-again
  (with-store [store]
    (let [{:keys [said]} (session store ["D0755 0 org\n" "D0755 0 x\n" "C0644 1 a\n" "1" ok "E\n" "E\n" "C0644 1 b\n" "2" ok])]
      (is (= (str/join (repeat 9 ok)) said))
      (is (= ["b" "org/x/a"] (store/files store))))))

(deftest times-are-kept
  (with-store [store]
    (session store ["T1000000000 0 1000000001 0\n" "C0644 1 old\n" "1" ok "C0644 1 new\n" "1" ok])
    (is (= 1000000000000 (.lastModified (store/file store ["old"]))))
    (is (< 1000000000000 (.lastModified (store/file store ["new"]))) "they hold for one file")))

(deftest a-target-that-is-no-directory-is-the-name
  (with-store [store]
    (session store {:target ["b.jar"], :inside false} ["C0644 1 a.jar\n" "1" ok])
    (is (= ["b.jar"] (store/files store)))))

(deftest a-directory-may-get-the-name-of-the-target
  (with-store [store]
    (session store {:target ["new"], :inside false} ["D0755 0 old\n" "C0644 1 a\n" "1" ok "E\n"])
    (is (= ["new/a"] (store/files store)))))

(deftest names-that-lead-elsewhere-are-refused
  (doseq [text ["../a" ".." "." "a/b" "/etc/passwd" ".hidden" "" "-rf" "a\\b" "a b" "a\u0000b" "\u00e9" "a\u001b[2J"]]
    (testing (pr-str text)
      (with-store [store]
        (let [{:keys [said stored?]} (session store [(str "C0644 1 " text "\n")])]
          (is (str/starts-with? said (str ok "\u0001clojars: ")))
          (is (re-matches #"[ -~]+\n" (subs said 2)) "nothing that a terminal acts on comes back")
          (is (not stored?))
          (is (empty? (store/files store))))))))

(deftest a-refused-name-does-not-stop-the-next-file
  (with-store [store]
    (let [{:keys [stored?]} (session store ["C0644 1 ../a\n" "C0644 1 b\n" "1" ok])]
      (is (not stored?))
      (is (= ["b"] (store/files store))))))

(deftest a-directory-that-leads-elsewhere-is-refused
  (with-store [store]
    (is (not (:stored? (session store ["D0755 0 ..\n"]))))))

(deftest a-file-does-not-replace-a-directory
  (with-store [store]
    (store/make-directory! store ["a"])
    (is (str/includes? (:said (session store ["C0644 1 a\n"])) "it is a directory"))))

(deftest a-file-that-the-client-could-not-read-is-not-stored
  (with-store [store]
    (let [{:keys [said stored?]} (session store ["C0644 5 a\n" "12345" "\u0001read error\n"])]
      (is (str/includes? said "not stored: read error"))
      (is (not stored?))
      (is (empty? (store/files store))))))

(deftest a-client-that-leaves-in-the-middle-leaves-nothing
  (doseq [sent [["C0644 5 a\n" "123"] ["C0644 5 a\n" "12345"] ["C0644 5"]]]
    (with-store [store]
      (is (thrown? EOFException (session store sent)))
      (is (empty? (store/files store)))
      (is (empty? (.list (io/file (:root store) ".incoming")))))))

(deftest what-nobody-understands-is-answered
  (doseq [line ["X\n" "C0644 a b\n" "C0644 -1 b\n" "C9999999999 1 b\n" "\n" "T1 2\n" "E\n"]]
    (testing (pr-str line)
      (with-store [store]
        (is (str/includes? (:said (session store [line])) "clojars: not understood"))))))

(deftest the-words-of-scp-are-understood
  (is (= {:target [], :inside false} (scp/parse ["scp" "-t" "."])))
  (is (= {:target [], :inside false} (scp/parse ["-t"])))
  (is (= {:target ["org" "x"], :inside true} (scp/parse ["scp" "-v" "-r" "-p" "-d" "-t" "--" "/org/x/"])))
  (doseq [words [["scp" "-t" "../etc"] ["scp" "-t" "~/.ssh"] ["scp" "-f" "a"] ["/usr/lib/openssh/sftp-server"] ["scp" "-t" "a" "b"]]]
    (is (thrown? clojure.lang.ExceptionInfo (scp/parse words)) (pr-str words))))

(deftest a-disk-that-fails-is-told-and-the-next-line-is-found
  (with-store [store]
    (with-redefs [store/write! (fn [& _] (throw (java.io.IOException. "No space left on device")))]
      (let [{:keys [said stored?]} (session store ["C0644 5 a\n" "hello" ok "C0644 0 b\n" ok])]
        (is (= (str ok ok "\u0001clojars: not stored: No space left on device\n" ok ok) said))
        (is (not stored?))))
    (is (= ["b"] (store/files store)))))
